"""The order over shards: no sample is lost or twice, for any shards, ranks and resume."""

import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from batching import plan_for, streamed
from hypothesis import given, strategies as st

from byol.data.batches import members
from byol.data.images import open_images
from byol.data.windows import STRETCH, TOGETHER, Windows


def visited(windows: Windows, images: int, start: int, steps: int, batch: int, ranks: int = 1) -> list[int]:
    """What all ranks together see, step by step."""
    share, seen = batch // ranks, []
    for step in range(start, start + steps):
        for rank in range(ranks):
            seen += members(step * batch + rank * share, share, 5, images, windows)[1].tolist()
    return seen


@given(st.lists(st.integers(0, 1500), min_size=1, max_size=40), st.integers(0, 3))
def test_an_epoch_is_every_image_once(lengths: list[int], epoch: int) -> None:
    images = sum(lengths)
    windows = Windows(lengths)
    assert sorted(windows.part(0, epoch, 0, images).tolist()) == list(range(images))


@pytest.mark.parametrize("lengths", [[700] * 30, [3, 5000, 1, 1, 9000, 40], [1] * 50, [20_000]])
def test_no_sample_is_lost_or_twice_across_ranks_and_a_resume_at_another_number_of_them(lengths) -> None:
    images, batch = sum(lengths), 24
    windows, steps = Windows(lengths), 2 * sum(lengths) // 24
    alone = visited(windows, images, 0, steps, batch)
    again = Windows(lengths)  # of another process
    half = steps // 3
    shared = visited(again, images, 0, half, batch, ranks=2)
    shared += visited(Windows(lengths), images, half, steps - half, batch, ranks=4)
    assert shared == alone
    assert sorted(alone[:images]) == list(range(images))
    assert alone[:images] != alone[images : 2 * images]  # another epoch, another order


def test_the_order_follows_from_seed_epoch_and_lengths_alone() -> None:
    orders = {
        (seed, epoch, tuple(lengths)): tuple(Windows(lengths).part(seed, epoch, 0, 30_000).tolist())
        for seed in (0, 1) for epoch in (0, 1) for lengths in ([10_000] * 3, [7_000, 23_000])
    }  # fmt: skip
    assert len(set(orders.values())) == 8
    even = Windows([500 * TOGETHER] * 8)  # stretches of 500, so windows of a shard's length
    windows = {frozenset(even.part(0, epoch, 0, 500 * TOGETHER).tolist()) for epoch in range(4)}
    assert len(windows) == 4  # not only is a window shuffled otherwise: it holds others
    for (seed, epoch, lengths), order in orders.items():
        torch.manual_seed(9)
        assert tuple(Windows(lengths).part(seed, epoch, 0, 30_000).tolist()) == order


def test_what_is_read_at_a_time_lies_in_few_places_and_comes_from_anywhere() -> None:
    lengths = [5000] * 40
    order = Windows(lengths).part(0, 0, 0, 200_000).numpy()
    window = order[: STRETCH * TOGETHER * 9 // 10]
    assert len(np.unique(window // 5000)) > 8  # shards
    runs = np.flatnonzero(np.diff(np.sort(window)) > 1)
    assert len(runs) > TOGETHER  # a part of a window is missing images here and there
    assert (np.diff(np.sort(window)) > STRETCH // 2).sum() < TOGETHER  # but they lie in so many stretches
    # within a window an image's neighbours are drawn: the mean step is that of a random order
    steps = np.abs(np.diff(window.astype(float)))
    assert np.median(steps) > 5000


def test_a_million_samples_begin_in_milliseconds_of_memory_that_does_not_grow_with_them() -> None:
    windows = Windows([10_000] * 1000)  # ten million
    part = windows.part(3, 7, 5_000_000, 5_000_256)
    assert len(part) == 256
    assert windows.starts.numel() < 25_000


@pytest.mark.parametrize("workers", [0, 2])
def test_crops_from_shards_are_those_of_loose_files_in_another_order(
    files: Path, tmp_path: Path, workers
) -> None:
    paths = sorted(files.iterdir())
    for number in range(3):
        with tarfile.open(tmp_path / f"{number}.tar", "w") as shard:
            for path in paths[8 * number : 8 * number + 8]:
                shard.add(path, path.name)
    loose, packed = open_images(files), open_images(tmp_path)
    plan = plan_for(len(paths), batch_size=23, windows=packed.windows())
    (mine,) = streamed(packed, plan, range(1, 2), workers=workers)
    (theirs,) = streamed(loose, plan_for(len(paths), batch_size=23), range(1, 2))
    assert mine.indices.tolist() == plan.windows.part(plan.seed, 1, 0, 23).tolist()
    assert mine.indices.tolist() != theirs.indices.tolist()
    assert torch.equal(mine.crops[mine.indices.argsort()], theirs.crops[theirs.indices.argsort()])
    assert loose.windows() is None

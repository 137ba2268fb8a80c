"""Which images make a step, and how their pixels arrive: the same by any route, any workers, any start."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from batching import COUNT, PHOTOS, Reports, plan_for, same, streamed
from PIL import Image
from torch import Tensor

from byol.data.batches import (
    CHUNK,
    Batch,
    Batches,
    BatchPlan,
    Cropped,
    load_resident,
    members,
    order,
    resident_batches,
)
from byol.data.images import open_images
from byol.data.workers import in_workers
from byol.errors import DataError
from byol.method.crops import crop_boxes, crop_draws
from byol.method.extra import extra_views
from byol.method.views import ViewConfig, Views
from byol.train.stopwatch import Stopwatch


def test_each_epoch_is_a_permutation_that_follows_from_seed_and_epoch() -> None:
    orders = {key: order(*key, 50) for key in ((0, 0), (0, 1), (1, 0), (1, 1))}
    for permutation in orders.values():
        assert permutation.sort().values.equal(torch.arange(50))
    assert len({tuple(permutation.tolist()) for permutation in orders.values()}) == 4
    order.cache_clear()
    assert all(order(*key, 50).equal(permutation) for key, permutation in orders.items())


def test_the_order_is_uniform() -> None:
    firsts = torch.stack([order(0, epoch, 10) for epoch in range(3000)])
    counts = torch.stack([(firsts == image).sum(dim=0) for image in range(10)])  # (image, place)
    assert (
        (counts - 300).float() ** 2 / 300
    ).sum() < 135  # chi-squared, 81 degrees of freedom: 1 in 6,000 is larger


def test_batches_straddle_epochs_and_visit_every_image_once_an_epoch() -> None:
    visited = torch.cat([members(start, 10, 3, COUNT)[1] for start in range(0, 230, 10)])
    epochs = torch.cat([members(start, 10, 3, COUNT)[0] for start in range(0, 230, 10)])
    assert epochs.equal(torch.arange(230) // COUNT)
    for epoch in range(10):
        assert visited[epochs == epoch].sort().values.equal(torch.arange(COUNT))


def test_a_batch_may_be_larger_than_the_set() -> None:
    epochs, indices = members(4, 20, 0, 6)
    assert epochs.tolist() == [0] * 2 + [1] * 6 + [2] * 6 + [3] * 6
    assert indices.tolist() == torch.cat([order(0, epoch, 6) for epoch in range(4)]).tolist()[4:]


# Streamed


@pytest.mark.parametrize("workers", [1, 2])
def test_streamed_batches_do_not_depend_on_the_workers(workers: int, files: Path) -> None:
    images, plan = open_images(files), plan_for(batch_size=2 * CHUNK + 5)
    alone = list(streamed(images, plan, range(4)))
    assert [len(batch.indices) for batch in alone] == [2 * CHUNK + 5] * 4
    assert same(list(streamed(images, plan, range(4), workers)), alone)


@pytest.mark.parametrize("workers", [0, 1])
def test_streamed_batches_can_start_in_the_middle(workers: int, files: Path) -> None:
    images, plan = open_images(files), plan_for()
    whole = list(streamed(images, plan, range(6)))
    assert same(list(streamed(images, plan, range(4, 6), workers)), whole[4:])
    assert list(streamed(images, plan, range(6, 6), workers)) == []


def test_a_streamed_crop_is_pillows_to_one_grey_level(files: Path) -> None:
    images, plan = open_images(files), plan_for()
    for batch in streamed(images, plan, range(5)):
        assert (batch.crops.shape, batch.crops.dtype) == ((10, 2, 3, 16, 16), torch.uint8)
    start = 40
    epochs, indices = members(start, 10, plan.seed, COUNT)
    for row, (epoch, index) in enumerate(zip(epochs.tolist(), indices.tolist(), strict=True)):
        picture = Image.open(files / f"{index:02}.png")
        for view in (0, 1):
            size = torch.tensor([picture.height]), torch.tensor([picture.width])
            draws = crop_draws(plan.seed, torch.tensor([epoch]), torch.tensor([index]), view)
            drawn = crop_boxes(draws, *size, area=(0.08, 1.0), ratio=(3 / 4, 4 / 3), flip=0.5)
            top, left, height, width = drawn.boxes[0].tolist()
            crop = picture.crop((left, top, left + width, top + height)).resize(
                (16, 16), Image.Resampling.BICUBIC
            )
            if drawn.flips[0]:
                crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            difference = batch.crops[row, view].int() - torch.tensor(np.array(crop)).permute(2, 0, 1).int()
            assert difference.abs().max() <= 1


def test_the_crop_settings_are_obeyed() -> None:
    images = open_images(PHOTOS)
    whole = plan_for(config=ViewConfig(crop_area=(1.0, 1.0), crop_ratio=(1.5, 1.5), flip=0.0), size=(24, 36))
    for batches in (
        streamed(images, whole, range(1)),
        resident_batches(load_resident(images, Reports()), whole),
    ):
        batch = next(iter(batches))
        crops = (
            batch.crops if batch.crops.dtype == torch.uint8 else (batch.crops * 255).round().to(torch.uint8)
        )
        for view in (0, 1):
            assert np.array_equal(crops[:, view].permute(0, 2, 3, 1).numpy(), PHOTOS[batch.indices])
    flipped = plan_for(
        config=ViewConfig(crop_area=(1.0, 1.0), crop_ratio=(1.5, 1.5), flip=1.0), size=(24, 36)
    )
    batch = next(streamed(images, flipped, range(1)))
    assert np.array_equal(batch.crops[:, 0].permute(0, 2, 3, 1).numpy(), PHOTOS[batch.indices][:, :, ::-1])


def test_one_crop_of_each_image_is_the_first_of_two() -> None:
    images = open_images(PHOTOS)
    for batches in (
        lambda plan: streamed(images, plan, range(1)),
        lambda plan: resident_batches(load_resident(images, Reports()), plan),
    ):
        one, two = (next(iter(batches(plan_for(crops=number)))) for number in (1, 2))
        assert one.crops.shape == (10, 1, 3, 16, 16)
        assert torch.equal(one.crops, two.crops[:, :1])


def test_oblong_crops_and_gray_and_many_channels() -> None:
    for channels in (1, 13):
        source = np.random.default_rng(0).integers(0, 256, size=(COUNT, 24, 36, channels), dtype=np.uint8)
        batch = next(streamed(open_images(source), plan_for(size=(10, 20), channels=channels), range(1)))
        assert batch.crops.shape == (10, 2, channels, 10, 20)


def test_gray_files_are_streamed(files: Path) -> None:
    gray, colour = (
        next(streamed(open_images(files, channels=n), plan_for(channels=n), range(1))) for n in (1, 3)
    )
    assert gray.crops.shape == (10, 2, 1, 16, 16)
    weights = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    luma = (colour.crops * weights).sum(dim=2, keepdim=True)
    assert (gray.crops - luma).abs().mean() < 1


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (2, 4000), (4000, 2)])
def test_extreme_shapes_are_cropped(size: tuple[int, int]) -> None:
    images = open_images([np.full((*size, 3), 200, np.uint8)] * 3)
    pictures = open_images([Image.new("RGB", size[::-1], (200, 200, 200))] * 3)
    plan = plan_for(3)
    routes = [streamed(images, plan, range(3)), streamed(pictures, plan, range(3))]
    for batch in [
        *routes[0],
        *routes[1],
        *islice(resident_batches(load_resident(images, Reports()), plan), 3),
    ]:
        scale = 1 if batch.crops.dtype == torch.uint8 else 255
        assert torch.allclose(batch.crops.float() * scale, torch.tensor(200.0), atol=1)


# Resident


def test_resident_images_are_the_arrays() -> None:
    resident = load_resident(open_images(PHOTOS), Reports())
    assert resident.dtype == torch.uint8
    assert np.array_equal(resident.permute(0, 2, 3, 1).numpy(), PHOTOS)


def test_resident_batches_can_start_in_the_middle() -> None:
    resident, plan = load_resident(open_images(PHOTOS), Reports()), plan_for()
    whole = list(islice(resident_batches(resident, plan), 6))
    assert same(list(islice(resident_batches(resident, plan, 4), 2)), whole[4:])


@pytest.mark.parametrize("source", ["arrays", "pictures"])
def test_both_routes_give_the_same_crops(source: str) -> None:
    images = open_images(PHOTOS if source == "arrays" else [Image.fromarray(pixels) for pixels in PHOTOS])
    plan = plan_for()
    for theirs, ours in zip(
        streamed(images, plan, range(5)),
        resident_batches(load_resident(images, Reports()), plan),
        strict=False,
    ):
        assert torch.equal(theirs.indices, ours.indices)
        assert (ours.crops.dtype, ours.crops.min() >= 0, ours.crops.max() <= 1) == (torch.float32, True, True)
        difference = (ours.crops * 255 - theirs.crops.float()).abs()
        assert difference.mean() < 0.5  # rounding; Pillow also rounds between its two passes
        assert difference.max() < 2.5


def test_images_of_several_sizes_cannot_be_resident(files: Path) -> None:
    with pytest.raises(
        DataError, match=r"01\.png is 21x49 pixels, the first image 20x50: .* Give --data\.in-memory False"
    ):
        load_resident(open_images(files), Reports())


@pytest.mark.parametrize("accumulation", [2, 5])
def test_accumulation_gives_the_images_of_one_large_batch(accumulation: int, files: Path) -> None:
    large, small = plan_for(), plan_for(accumulation=accumulation)
    images, resident = open_images(files), load_resident(open_images(PHOTOS), Reports())
    routes: list[Callable[[BatchPlan, int], list[Cropped]]] = [
        lambda plan, _: list(streamed(images, plan, range(1, 3))),
        lambda plan, batches: list(islice(resident_batches(resident, plan, 1), batches)),
    ]
    for route in routes:
        whole, parts = route(large, 2), route(small, 2 * accumulation)
        assert [len(part.indices) for part in parts] == [10 // accumulation] * (2 * accumulation)
        assert torch.equal(torch.cat([b.indices for b in parts]), torch.cat([b.indices for b in whole]))
        assert torch.allclose(
            torch.cat([b.crops for b in parts]).float(),
            torch.cat([b.crops for b in whole]).float(),
            atol=1e-6,
        )


@pytest.mark.parametrize("start", [0, 3])
def test_views_are_those_of_seed_step_and_row_however_a_batch_is_cut(start: int) -> None:
    """As `Views.finish` draws them for one large batch; every row and step has draws of its own."""
    resident, whole = load_resident(open_images(PHOTOS), Reports()), plan_for()
    crops, indices, _ = next(resident_batches(resident, whole, start))
    expected = Views(16).finish(crops, seed=whole.seed, step=start)
    for accumulation in (1, 2, 5):
        plan = plan_for(accumulation=accumulation)
        parts = list(islice(Batches(resident_batches(resident, plan, start), plan, start), 2 * accumulation))
        each = zip(*(part[:3] for part in parts[:accumulation]), strict=True)
        for ours, theirs in zip(each, (*expected, indices), strict=True):
            torch.testing.assert_close(torch.cat(ours), theirs, rtol=1e-5, atol=1e-5)

    one, same_image = plan_for(1), torch.zeros(10, dtype=torch.int64)
    picture = Cropped(crops[:1].expand(10, -1, -1, -1, -1), same_image)
    drawn = [view for batch in islice(Batches(iter([picture] * 3), one), 3) for view in batch.view1]
    assert len({tuple(view.flatten().tolist()) for view in drawn}) > 20  # some of 30 keep their colours


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize(("accumulation", "numbers"), [(1, (5, 1, 2)), (2, (1, 5)), (5, (2, 1))])
def test_processes_share_a_run_whose_number_may_change_and_no_image_is_lost_or_comes_twice(
    accumulation: int, numbers: tuple[int, ...], in_memory: bool, files: Path
) -> None:
    """Three steps by each number of processes: order, crops and views are those of one process."""
    plan = plan_for(accumulation=accumulation)
    images, resident = open_images(files), load_resident(open_images(PHOTOS), Reports())

    def batches(rank: int, ranks: int, steps: range) -> list[Batch]:
        own = replace(plan, rank=rank, ranks=ranks)
        crops = resident_batches(resident, own, steps.start) if in_memory else streamed(images, own, steps)
        return list(islice(Batches(crops, own, steps.start), len(steps) * accumulation))

    shared: list[Batch] = []
    for count, ranks in enumerate(numbers):
        steps = range(3 * count, 3 * count + 3)
        parts = zip(*(batches(rank, ranks, steps) for rank in range(ranks)), strict=True)
        shared += [Batch(*map(torch.cat, zip(*(one[:3] for one in part), strict=True))) for part in parts]
    alone = batches(0, 1, range(3 * len(numbers)))
    for ours, theirs in zip(shared, alone, strict=True):
        assert torch.equal(ours.indices, theirs.indices)
        torch.testing.assert_close(ours[:2], theirs[:2], rtol=1e-5, atol=1e-5)


def test_waiting_for_crops_and_finishing_their_views_are_counted_apart() -> None:
    crops = Cropped(torch.zeros(10, 2, 3, 16, 16), torch.arange(10))

    class Slow(Views):
        def finish(self, *given: Any, **more: Any) -> tuple[Tensor, Tensor]:
            time.sleep(0.2)
            return super().finish(*given, **more)

    def slow() -> Iterator[Cropped]:
        for _ in range(3):
            time.sleep(0.2)
            yield crops

    come, ready = Stopwatch(), Stopwatch()
    slow_to_come = Batches(slow(), plan_for(), begin=come.begin)
    slow_to_finish = Batches(iter([crops] * 3), replace(plan_for(), views=Slow(16)), begin=ready.begin)
    assert len(list(slow_to_come)) == len(list(slow_to_finish)) == 3
    assert come.seconds()["waiting"] >= 0.6
    assert ready.seconds()["views"] >= 0.6
    assert ready.seconds()["waiting"] < 0.6


def test_images_in_memory_are_not_waited_for_while_they_are_cropped() -> None:
    watch, resident = Stopwatch(), torch.randint(0, 256, (40, 3, 64, 64), dtype=torch.uint8)
    batches = Batches(resident_batches(resident, plan_for(), 0, watch.begin), plan_for(), begin=watch.begin)
    next(batches)
    began = time.perf_counter()
    for _ in range(20):
        next(batches)
    passed, spent = time.perf_counter() - began, watch.seconds()
    assert spent["views"] > 0.8 * passed


def test_crops_are_tensors_of_their_own(files: Path) -> None:
    first, second = islice(streamed(open_images(files), plan_for(), range(2)), 2)
    kept: Tensor = first.crops.clone()
    second.crops.zero_()
    assert torch.equal(first.crops, kept)


def test_slow_images_are_waited_for_as_long_as_one_follows_another(monkeypatch) -> None:
    """Three seconds of ten images in one task, where a worker is given up that makes nothing for two."""

    class Slow:
        def __len__(self) -> int:
            return 10

        def __getitem__(self, index: int) -> np.ndarray:
            time.sleep(0.3)
            return PHOTOS[index]

    monkeypatch.setitem(in_workers.__kwdefaults__, "patience", 2.0)
    (batch,) = streamed(open_images(Slow()), plan_for(images=10), range(1), workers=1)
    assert sorted(batch.indices.tolist()) == list(range(10))


EXTRA = extra_views(Views(16), local=2, cutout=1, targets=1)
SIZES = {"local": [(8, 8)] * 2, "cutout": [(16, 16)], "target": [(16, 16)]}


@pytest.mark.parametrize("in_memory", [True, False])
def test_extra_views_depend_on_neither_processes_nor_micro_batches_and_leave_the_two_views_as_they_are(
    in_memory: bool, files: Path
) -> None:
    images, resident = open_images(files), load_resident(open_images(PHOTOS), Reports())

    def batches(plan: BatchPlan, count: int) -> list[Batch]:
        crops = resident_batches(resident, plan) if in_memory else streamed(images, plan, range(2))
        return list(islice(Batches(crops, plan), count))

    alone, plain = (batches(plan_for(extra_views=extra), 2) for extra in (EXTRA, ()))
    for ours, theirs in zip(alone, plain, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours[:3], theirs[:3], strict=True))
        assert {name: [tuple(v.shape[2:]) for v in views] for name, views in ours.extra.items()} == SIZES
        every = [*ours.extra["local"], *ours.extra["cutout"], *ours.extra["target"], *ours[:2]]
        assert len({float(view.sum()) for view in every}) == len(every)  # no two are drawn alike
    shared = [batches(plan_for(accumulation=5, rank=rank, ranks=2, extra_views=EXTRA), 10) for rank in (0, 1)]
    parts = [part for both in zip(*shared, strict=True) for part in both]  # in the order of the whole batch
    for step, whole in enumerate(alone):
        own = parts[10 * step : 10 * step + 10]
        for name, views in whole.extra.items():
            for number, view in enumerate(views):
                joined = torch.cat([part.extra[name][number] for part in own])
                torch.testing.assert_close(joined, view, rtol=1e-5, atol=1e-5)


def test_extra_views_of_streamed_images_do_not_depend_on_the_workers(files: Path) -> None:
    images, plan = open_images(files), plan_for(extra_views=EXTRA)
    one, two = (list(streamed(images, plan, range(2), workers=workers)) for workers in (0, 2))
    for ours, theirs in zip(one, two, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours.extra, theirs.extra, strict=True))

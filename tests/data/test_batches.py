"""Which images make a step, and how their pixels arrive: the same for any route, any workers and any start."""

import gc
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pictures import encoded, photo
from PIL import Image
from torch import Tensor

from byol.data.batches import (
    CHUNK,
    Batch,
    BatchPlan,
    load_resident,
    members,
    order,
    resident_batches,
    streamed_batches,
    substitutes,
)
from byol.data.sources import Images, open_images
from byol.errors import ByolError, DataError
from byol.method.crops import draw_crops
from byol.method.views import ViewConfig

CPU = torch.device("cpu")
COUNT = 23
PHOTOS = np.stack([photo(24, 36, seed) for seed in range(COUNT)])


def plan_for(images: int = COUNT, **changes: Any) -> BatchPlan:
    given = {"seed": 3, "images": images, "batch_size": 10, "accumulation": 1, "size": (16, 16), "views": ViewConfig()}
    return BatchPlan(**(given | changes))


class Reports(list[tuple[int, str]]):
    def __call__(self, index: int, reason: str) -> None:
        self.append((index, reason))


def streamed(
    images: Images, plan: BatchPlan, steps: range, workers: int = 0, report: Callable[[int, str], None] | None = None
) -> Iterator[Batch]:
    return streamed_batches(
        images,
        plan,
        channels=images.channels,
        device=CPU,
        workers=workers,
        steps=steps,
        report=Reports() if report is None else report,
    )


def same(first: list[Batch], second: list[Batch]) -> bool:
    pairs = zip(first, second, strict=True)
    return all(torch.equal(a.crops, b.crops) and torch.equal(a.indices, b.indices) for a, b in pairs)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of several sizes."""
    root = tmp_path_factory.mktemp("files")
    for index in range(COUNT):
        (root / f"{index:02}.png").write_bytes(encoded(photo(20 + index, 50 - index, index)))
    return root


# Order


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
    assert ((counts - 300).float() ** 2 / 300).sum() < 135  # chi-squared, 81 degrees of freedom: 1 in 6,000 is larger


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


def test_a_streamed_crop_is_pillows(files: Path) -> None:
    images, plan = open_images(files), plan_for()
    for batch in streamed(images, plan, range(5)):
        assert (batch.crops.shape, batch.crops.dtype) == ((10, 2, 3, 16, 16), torch.uint8)
    start = 40
    epochs, indices = members(start, 10, plan.seed, COUNT)
    for row, (epoch, index) in enumerate(zip(epochs.tolist(), indices.tolist(), strict=True)):
        picture = Image.open(files / f"{index:02}.png")
        for view in (0, 1):
            drawn = draw_crops(
                plan.seed,
                torch.tensor([epoch]),
                torch.tensor([index]),
                view,
                torch.tensor([picture.height]),
                torch.tensor([picture.width]),
                area=(0.08, 1.0),
                ratio=(3 / 4, 4 / 3),
                flip=0.5,
            )
            top, left, height, width = drawn.boxes[0].tolist()
            crop = picture.crop((left, top, left + width, top + height)).resize((16, 16), Image.Resampling.BICUBIC)
            if drawn.flips[0]:
                crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            assert torch.equal(batch.crops[row, view], torch.tensor(np.asarray(crop)).permute(2, 0, 1))


def test_the_crop_settings_are_obeyed() -> None:
    images = open_images(PHOTOS)
    whole = plan_for(views=ViewConfig(crop_area=(1.0, 1.0), crop_ratio=(1.5, 1.5), flip=0.0), size=(24, 36))
    for batches in (streamed(images, whole, range(1)), resident_batches(load_resident(images, Reports()), whole)):
        batch = next(iter(batches))
        crops = batch.crops if batch.crops.dtype == torch.uint8 else (batch.crops * 255).round().to(torch.uint8)
        for view in (0, 1):
            assert np.array_equal(crops[:, view].permute(0, 2, 3, 1).numpy(), PHOTOS[batch.indices])
    flipped = plan_for(views=ViewConfig(crop_area=(1.0, 1.0), crop_ratio=(1.5, 1.5), flip=1.0), size=(24, 36))
    batch = next(streamed(images, flipped, range(1)))
    assert np.array_equal(batch.crops[:, 0].permute(0, 2, 3, 1).numpy(), PHOTOS[batch.indices][:, :, ::-1])


def test_oblong_crops_and_gray_and_many_channels() -> None:
    for channels in (1, 13):
        source = np.random.default_rng(0).integers(0, 256, size=(COUNT, 24, 36, channels), dtype=np.uint8)
        batch = next(streamed(open_images(source), plan_for(size=(10, 20)), range(1)))
        assert batch.crops.shape == (10, 2, channels, 10, 20)


def test_gray_files_are_streamed(files: Path) -> None:
    gray, colour = (next(streamed(open_images(files, channels=n), plan_for(), range(1))) for n in (1, 3))
    assert gray.crops.shape == (10, 2, 1, 16, 16)
    weights = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    luma = (colour.crops * weights).sum(dim=2, keepdim=True)
    assert (gray.crops - luma).abs().mean() < 1


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
        streamed(images, plan, range(5)), resident_batches(load_resident(images, Reports()), plan), strict=False
    ):
        assert torch.equal(theirs.indices, ours.indices)
        assert (ours.crops.dtype, ours.crops.min() >= 0, ours.crops.max() <= 1) == (torch.float32, True, True)
        difference = (ours.crops * 255 - theirs.crops.float()).abs()
        assert difference.mean() < 0.5  # rounding; Pillow also rounds between its two passes
        assert difference.max() < 2.5


def test_images_of_several_sizes_cannot_be_resident(files: Path) -> None:
    with pytest.raises(DataError, match=r"01\.png is 21x49 pixels, the first image 20x50: .* Give --data\.in-memory False"):
        load_resident(open_images(files), Reports())


@pytest.mark.parametrize("accumulation", [2, 5])
def test_accumulation_gives_the_images_of_one_large_batch(accumulation: int, files: Path) -> None:
    large, small = plan_for(), plan_for(accumulation=accumulation)
    images, resident = open_images(files), load_resident(open_images(PHOTOS), Reports())
    routes: list[Callable[[BatchPlan, int], list[Batch]]] = [
        lambda plan, _: list(streamed(images, plan, range(1, 3))),
        lambda plan, batches: list(islice(resident_batches(resident, plan, 1), batches)),
    ]
    for route in routes:
        whole, parts = route(large, 2), route(small, 2 * accumulation)
        assert [len(part.indices) for part in parts] == [10 // accumulation] * (2 * accumulation)
        assert torch.equal(torch.cat([b.indices for b in parts]), torch.cat([b.indices for b in whole]))
        assert torch.allclose(
            torch.cat([b.crops for b in parts]).float(), torch.cat([b.crops for b in whole]).float(), atol=1e-6
        )


# Images that cannot be read


@pytest.fixture(scope="module")
def with_bad(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of one size; 4 and 11 are no pictures, 17 is cut off."""
    root = tmp_path_factory.mktemp("with_bad")
    for index in range(COUNT):
        (root / f"{index:02}.png").write_bytes(encoded(photo(24, 36, index)))
    (root / "04.png").write_bytes(b"")
    (root / "11.png").write_bytes(b"<html>404</html>")
    (root / "17.png").write_bytes((root / "17.png").read_bytes()[:200])
    return root


def test_bad_images_are_replaced_and_reported_the_same_with_any_workers(with_bad: Path) -> None:
    images, plan = open_images(with_bad), plan_for()
    outcomes = []
    for workers in (0, 1, 2):
        reports = Reports()
        outcomes.append((list(streamed(images, plan, range(5), workers, reports)), reports))
    (alone, told), *others = outcomes
    assert {index for index, _ in told} == {4, 11, 17}
    assert {(index, reason) for index, reason in told if index != 17} == {
        (4, "the file is empty"),
        (11, "it is a web page or XML, not a picture"),
    }
    for batches, reports in others:
        assert same(batches, alone)
        assert reports == told


def test_both_routes_replace_a_bad_image_by_the_same_other(with_bad: Path) -> None:
    reports, images, plan = Reports(), open_images(with_bad), plan_for()
    resident = load_resident(images, reports)
    assert [index for index, _ in reports] == [4, 11, 17]
    for theirs, ours in zip(streamed(images, plan, range(5)), resident_batches(resident, plan), strict=False):
        assert (ours.crops * 255 - theirs.crops.float()).abs().mean() < 0.5
    for index in (4, 11, 17):
        other = next(i for i in substitutes(index, COUNT) if i not in (4, 11, 17))
        assert np.array_equal(resident[index].permute(1, 2, 0).numpy(), photo(24, 36, other))
    assert len({next(iter(substitutes(index, 10**6))) for index in range(100)}) == 100  # not all the same one


def test_substitutes_try_every_other_image() -> None:
    for count in (1, 2, 7, 100):
        assert set(substitutes(0, count)) | {0} == set(range(count))
        assert list(substitutes(count - 1, count)) == list(substitutes(count - 1, count))


@pytest.mark.parametrize("workers", [0, 1])
def test_no_readable_image_at_all_is_one_sentence(workers: int, tmp_path: Path) -> None:
    for name in ("1.png", "2.png"):
        (tmp_path / name).touch()
    images, reports = open_images(tmp_path), Reports()
    with pytest.raises(DataError, match="None of the 2 images can be read"):
        next(streamed(images, plan_for(2), range(1), workers, reports))
    assert {index for index, _ in reports} == {0, 1}
    with pytest.raises(DataError, match="None of the 2 images can be read"):
        load_resident(images, Reports())


@pytest.mark.parametrize("workers", [0, 1])
def test_the_report_may_stop_the_run(workers: int, with_bad: Path) -> None:
    def stop(index: int, reason: str) -> None:
        raise DataError(f"image {index} is too many")

    with pytest.raises(DataError, match=r"image \d+ is too many"):
        list(streamed(open_images(with_bad), plan_for(), range(3), workers, stop))


# Workers


def test_no_worker_outlives_the_batches(files: Path) -> None:
    batches = streamed(open_images(files), plan_for(), range(1000), workers=2)
    next(batches)
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    del batches
    gc.collect()
    for worker in workers:
        worker.join(10)
        assert not worker.is_alive()


def test_a_ctrl_c_is_left_to_the_run(files: Path) -> None:
    """A terminal sends it to every process; a worker that obeyed would kill the run before it has saved."""
    images, plan = open_images(files), plan_for()
    batches = streamed(images, plan, range(40), workers=2)
    seen = [next(batches), next(batches)]  # one from each worker: both are up
    for worker in multiprocessing.active_children():
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGINT)
    seen += list(batches)
    assert same(seen, list(streamed(images, plan, range(40))))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_dead_worker_is_one_sentence(number: signal.Signals, files: Path) -> None:
    others = multiprocessing.active_children()
    batches = streamed(open_images(files), plan_for(), range(10_000), workers=2)
    assert len([next(batches), next(batches)]) == 2  # one from each worker: both are up
    victim = next(worker for worker in multiprocessing.active_children() if worker not in others)
    assert victim.pid is not None
    os.kill(victim.pid, number)
    victim.join(10)
    deadline = time.monotonic() + 0.2
    while time.monotonic() < deadline:  # the run is busy with its step: nothing may be raised here
        sum(range(1000))
    with pytest.raises(ByolError, match=r"A process that decodes images died .* Lower --workers") as caught:
        for _ in batches:
            pass
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 70


class Broken:
    """A sequence with a fault of its own, which is not a dead worker and not a bad image."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Any:
        return np.zeros((8, 8, 3), np.uint8)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_fault_in_the_code_keeps_its_own_name(workers: int) -> None:
    images = open_images(Broken())
    with pytest.raises(RuntimeError) as caught:  # crops of 3 channels do not fit a tensor of 5
        list(streamed_batches(images, plan_for(8), channels=5, device=CPU, workers=workers, steps=range(1), report=Reports()))
    assert not isinstance(caught.value, ByolError)


def test_crops_are_tensors_of_their_own(files: Path) -> None:
    first, second = islice(streamed(open_images(files), plan_for(), range(2)), 2)
    kept: Tensor = first.crops.clone()
    second.crops.zero_()
    assert torch.equal(first.crops, kept)

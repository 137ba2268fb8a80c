"""Crops for the training loop: which images make a step, and how their pixels reach the device.

The order of the images is a function of (seed, epoch), their crops of (seed, epoch, image, view): any number of workers,
before or after a resume, gives the same batches. Two routes. Photographs: worker processes decode a picture once, cut
and resize its crops, and send uint8. Small images: one uint8 tensor on the device, cropped there.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain
from math import prod
from mmap import mmap
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from byol.data.decode import BadImage
from byol.data.images import Images
from byol.data.workers import arriving, loader
from byol.errors import DataError
from byol.method.crops import Crops, crop_boxes, crop_draws, crop_resize, draw_crops, to_device
from byol.method.draws import Stream, seed_of, uniforms
from byol.method.views import ViewConfig

CHUNK = 32  # images a worker sends at once: small enough to keep several workers busy within one batch


@dataclass(frozen=True)
class Batch:
    """The crops of one micro-batch."""

    crops: Tensor  # uint8, or float in [0, 1], (B, V, C, h, w) on the device
    indices: Tensor  # int64 (B,) on the host: which images


@dataclass(frozen=True)
class BatchPlan:
    """What the order and the crops of a run follow from."""

    seed: int
    images: int
    batch_size: int  # per optimizer step
    accumulation: int  # micro-batches per optimizer step
    size: tuple[int, int]  # height, width of a crop
    views: ViewConfig
    crops: int = 2  # V, of each image


class BadImageReport(Protocol):
    """Is told of every image that could not be read; may raise DataError when there are too many."""

    def __call__(self, index: int, reason: str) -> None: ...


@lru_cache(maxsize=2)
def order(seed: int, epoch: int, images: int) -> Tensor:
    """The order in which an epoch visits the images: int64 (N,), a permutation that follows from (seed, epoch)."""
    generator = torch.Generator().manual_seed(seed_of(seed, Stream.ORDER, epoch))
    return torch.randperm(images, generator=generator)


def members(position: int, count: int, seed: int, images: int) -> tuple[Tensor, Tensor]:
    """Epochs and indices, int64 (B,), of `count` images from a position in the endless stream of epochs.

    A batch may straddle two epochs, so every image is visited once an epoch and no image is dropped (as in the
    official pipeline, where epochs only count steps).
    """
    positions = torch.arange(position, position + count)
    epochs = positions // images
    indices = torch.empty_like(positions)
    for epoch in epochs.unique().tolist():
        here = epochs == epoch
        indices[here] = order(seed, epoch, images)[positions[here] - epoch * images]
    return epochs, indices


def resident_batches(images: Tensor, plan: BatchPlan, start: int = 0) -> Iterator[Batch]:
    """Micro-batches from step `start` on, cropped on the device from all images at once, uint8 (N, C, H, W)."""
    height, width = images.shape[2:]
    micro = plan.batch_size // plan.accumulation
    for position in range(start * plan.batch_size, 2**62, micro):
        epochs, indices = members(position, micro, plan.seed, plan.images)
        chosen = images[to_device(indices, images.device)].repeat_interleave(plan.crops, dim=0)
        crops = crop_resize(
            chosen, _crops(plan, epochs, indices, height, width), plan.size, plan.views.antialias
        )
        yield Batch(crops.div_(255).clamp_(0, 1).view(micro, plan.crops, *crops.shape[1:]), indices)


def _crops(plan: BatchPlan, epochs: Tensor, indices: Tensor, height: int, width: int) -> Crops:
    """The crops of all views of images of one size, the views of an image one after another."""
    views, count = plan.views, len(indices) * plan.crops
    epochs, indices = (numbers.repeat_interleave(plan.crops) for numbers in (epochs, indices))
    heights, widths = torch.full((count,), height), torch.full((count,), width)
    view = torch.arange(count) % plan.crops
    return draw_crops(
        plan.seed,
        epochs,
        indices,
        view,
        heights,
        widths,
        area=views.crop_area,
        ratio=views.crop_ratio,
        flip=views.flip,
    )


class SeveralSizes(DataError):
    """Images that make no tensor."""


def load_resident(images: Images, report: BadImageReport) -> Tensor:
    """All images as uint8 (N, C, H, W); one that cannot be read is replaced by another, chosen by its index."""
    result: Tensor | None = None
    bad: list[int] = []
    for index in range(len(images)):
        if index % 4096 == 0:
            images.release()  # what is read once, in order, need not be kept encoded beside the pixels
        try:
            image = images.array(index)
        except BadImage as failure:
            report(index, str(failure))
            bad.append(index)
            continue
        if result is None:
            shape = (len(images), image.shape[2], *image.shape[:2])
            # Mapped, beside the heap: so what loading frees there is not cut up, and serves the steps.
            result = torch.frombuffer(mmap(-1, prod(shape)), dtype=torch.uint8).view(shape)
        pixels = torch.from_numpy(image).permute(2, 0, 1)
        height, width = result.shape[2:]
        if pixels.shape != result.shape[1:]:
            raise SeveralSizes(
                f"{images.name(index)} is {image.shape[0]}x{image.shape[1]} pixels, the first image {height}x{width}: images "
                "of several sizes cannot be kept in memory as one tensor. Give --data.in-memory False."
            )
        result[index] = pixels
    if result is None:
        raise DataError(
            f"None of the {len(images)} images can be read. Run on other files, or see bad_files.jsonl."
        )
    unreadable = set(bad)
    for index in bad:
        substitute = next(i for i in substitutes(index, len(images)) if i not in unreadable)
        result[index] = result[substitute]
    return result


def substitutes(index: int, images: int) -> Iterator[int]:
    """The images that stand in for an unreadable one, in order: first a few drawn from its index, then its neighbours."""
    for value in uniforms((index, Stream.SUBSTITUTES, torch.arange(16)), 1)[:, 0].tolist():
        yield int(value * images)
    for step in range(1, images):
        yield (index + step) % images


@dataclass(frozen=True)
class Chunk:
    """A few consecutive rows of a micro-batch, as a worker sends them."""

    crops: Tensor  # uint8 (n, V, C, h, w)
    indices: list[int]  # no tensor: each that travels apart holds a file open until it is used
    bad: list[tuple[int, str]]  # images that could not be read, and why
    failure: str = ""  # why the chunk could not be made at all

    def pin_memory(self) -> "Chunk":
        """The chunk in page-locked memory. torch's loader asks for it in a thread of its own, and of no plain dataclass."""
        return replace(self, crops=self.crops.pin_memory())


class _Chunks(torch.utils.data.Dataset[Chunk]):
    """What a worker runs: (position in the stream of epochs, count) -> Chunk."""

    def __init__(self, images: Images, plan: BatchPlan, channels: int) -> None:
        self.images, self.plan, self.channels = images, plan, channels

    def __getitem__(self, place: tuple[int, int]) -> Chunk:
        position, count = place
        epochs, chosen = members(position, count, self.plan.seed, self.plan.images)
        indices = chosen.tolist()
        crops = torch.empty((count, self.plan.crops, self.channels, *self.plan.size), dtype=torch.uint8)
        drawn = torch.stack(
            [crop_draws(self.plan.seed, epochs, chosen, view) for view in range(self.plan.crops)], dim=1
        )
        bad: list[tuple[int, str]] = []
        try:
            for row, index in enumerate(indices):
                crops[row] = cut(self._readable(index, bad), self.plan, drawn[row])
        except (
            DataError
        ) as failure:  # sent as a value: an exception would arrive wrapped in a worker's traceback
            return Chunk(crops, indices, bad, str(failure))
        return Chunk(crops, indices, bad)

    def _readable(self, index: int, bad: list[tuple[int, str]]) -> Any:
        for candidate in chain((index,), substitutes(index, self.plan.images)):
            try:
                return self.images.picture(candidate)
            except BadImage as failure:
                bad.append((candidate, str(failure)))
        raise DataError(f"None of the {self.plan.images} images can be read.")


def cut(picture: Any, plan: BatchPlan, drawn: Tensor) -> Tensor:
    """The crops of one image, uint8 (V, C, h, w), from their draws (V, 5): one antialiased resize each, then the flip."""
    pixels = torch.from_numpy(np.array(picture))  # uint8 (H, W, C), or (H, W)
    image = (pixels[:, :, None] if pixels.ndim == 2 else pixels).permute(2, 0, 1)[None]
    heights, widths = (torch.full((len(drawn),), length) for length in image.shape[2:])
    views = plan.views
    crops = crop_boxes(drawn, heights, widths, area=views.crop_area, ratio=views.crop_ratio, flip=views.flip)
    if not views.antialias:
        resized = crop_resize(image.expand(len(drawn), -1, -1, -1), crops, plan.size, antialias=False)
        return resized.round_().clamp_(0, 255).to(torch.uint8)
    result = torch.empty((len(drawn), image.shape[1], *plan.size), dtype=torch.uint8)
    for view, ((top, left, tall, wide), flip) in enumerate(
        zip(crops.boxes.tolist(), crops.flips.tolist(), strict=True)
    ):
        crop = image[:, :, top : top + tall, left : left + wide]
        resized = F.interpolate(crop, plan.size, mode="bicubic", antialias=True)[
            0
        ]  # as Pillow's, in a quarter of its time
        result[view] = resized.flip(2) if flip else resized
    return result


def streamed_batches(
    images: Images,
    plan: BatchPlan,
    *,
    channels: int,
    device: torch.device,
    workers: int,
    steps: range,
    report: BadImageReport,
) -> Iterator[Batch]:
    """Micro-batches of the given steps, decoded and cropped by worker processes (in this process with 0 workers)."""
    micro = plan.batch_size // plan.accumulation
    starts = range(steps.start * plan.batch_size, steps.stop * plan.batch_size, micro)
    chunks = loader(
        _Chunks(images, plan, channels),
        workers=workers,
        batch_size=None,
        sampler=_Places(starts, micro),
        pin_memory=device.type == "cuda",
        prefetch_factor=4 if workers else None,
    )
    parts: list[Chunk] = []
    rows = 0
    with images.gathered():
        for chunk in arriving(chunks):
            for index, reason in chunk.bad:
                report(index, reason)
            if chunk.failure:
                raise DataError(chunk.failure)
            parts.append(chunk)
            rows += len(chunk.indices)
            if rows == micro:
                crops = torch.empty((micro, *chunk.crops.shape[1:]), dtype=torch.uint8, device=device)
                for target, part in zip(crops.split([len(p.indices) for p in parts]), parts, strict=True):
                    target.copy_(part.crops, non_blocking=True)
                yield Batch(crops, torch.tensor([index for part in parts for index in part.indices]))
                parts, rows = [], 0


class _Places(torch.utils.data.Sampler[tuple[int, int]]):
    """(position, count) of every chunk, micro-batch after micro-batch, without a list of them all."""

    def __init__(self, starts: range, micro: int) -> None:
        self.starts, self.micro = starts, micro

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for start in self.starts:
            for first in range(0, self.micro, CHUNK):
                yield start + first, min(CHUNK, self.micro - first)

    def __len__(self) -> int:
        return len(self.starts) * -(-self.micro // CHUNK)

"""What a training step is fed: which images make it, their crops, and the views finished from those.

The order of images is a function of (seed, epoch), their crops of (seed, epoch, image, view): any number of
workers, before or after a resume, gives the same batches. Two routes. Photographs: worker processes decode a
picture once, cut and resize its crops, and send uint8. Small images: one tensor on the device, cropped there.
"""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, islice, tee, zip_longest
from math import prod
from mmap import mmap
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from byol.data.decode import BadImage, pixels_of
from byol.data.images import Images
from byol.data.windows import Windows
from byol.data.workers import in_workers, never, part_done
from byol.errors import DataError
from byol.method.crops import crop_draws, crop_resize, to_device
from byol.method.draws import Stream, seed_of, uniforms
from byol.method.extra import ExtraViews
from byol.method.views import Views

NONE_READABLE = "None of the {} images can be read. Run on other files, or see bad_files.jsonl."
CHUNK = 32  # images a worker sends at once: small enough to keep several workers busy within one batch
Span = tuple[int, int]  # where images stand in the stream of epochs: the first, and how many
Report = Callable[[int, str], object]  # is told the row of an unreadable image, and why; may raise, to stop
Begin = Callable[[str], object]  # is told what begins: "waiting" for images, or making "views"


def untimed(part: str) -> None:
    """For who does not measure the time."""


class Batch(NamedTuple):
    """What a micro-batch is trained on: two views of each image, or of whatever the encoder takes."""

    view1: Any  # (B, ...)
    view2: Any  # (B, ...)
    indices: Tensor  # int64 (B,) on the host: which images
    extra: Mapping[str, Sequence[Any]] = {}  # views of them beside the two, by their kind


class Cropped(NamedTuple):
    """The crops of a micro-batch, before anything is done to their colours."""

    crops: Tensor  # uint8, or float in [0, 1], (B, V, C, h, w) on the device
    indices: Tensor  # int64 (B,) on the host: which images
    extra: tuple[Tensor, ...] = ()  # for extra views, kind by kind, each of a V and size of its own


@dataclass(frozen=True)
class BatchPlan:
    """What the order, the crops and the views of a run follow from."""

    seed: int
    images: int
    batch_size: int  # per optimizer step
    accumulation: int  # micro-batches per optimizer step
    views: Views
    crops: int = 2  # V, of each image
    windows: Windows | None = None  # of images that are read faster the closer they lie
    extra_views: tuple[ExtraViews, ...] = ()
    rank: int = 0  # of the processes that share every micro-batch; each makes its own part
    ranks: int = 1

    @property
    def parts(self) -> list[tuple[Views, int, Stream]]:
        """What is cropped of each image: views, how many of them, and the stream of their draws."""
        further = [(kind.views, kind.count, kind.crops) for kind in self.extra_views]
        return [(self.views, self.crops, Stream.CROPS), *further]

    @property
    def micro_batch_size(self) -> int:
        return self.batch_size // self.accumulation

    @property
    def share(self) -> int:
        """Images of a micro-batch that this process makes."""
        return self.micro_batch_size // self.ranks

    @property
    def first(self) -> int:
        """The place in every micro-batch of the first of them."""
        return self.rank * self.share


class Batches(Iterator[Batch]):
    """Finishes the views of crops as they come.

    `start` is the step that the first crops belong to. `poll` is called before each, and may raise, to stop;
    `begin` is told when crops are waited for and when their views are made.
    """

    def __init__(
        self,
        cropped: Iterator[Cropped],
        plan: BatchPlan,
        start: int = 0,
        poll: Callable[[], object] = never,
        begin: Begin = untimed,
    ) -> None:
        self.cropped, self.plan, self.poll, self.begin = cropped, plan, poll, begin
        self._count = start * plan.accumulation  # of micro-batches

    def __next__(self) -> Batch:
        self.begin("waiting")
        self.poll()
        crops, indices, extra = next(self.cropped)
        self.begin("views")
        step, micro = divmod(self._count, self.plan.accumulation)
        self._count += 1
        first = micro * self.plan.micro_batch_size + self.plan.first
        draws = {"seed": self.plan.seed, "step": step, "first_row": first}
        further = zip(self.plan.extra_views, extra, strict=True)
        finished = {kind.name: kind.finish(some, **draws) for kind, some in further}
        return Batch(*self.plan.views.finish(crops, **draws), indices, finished)

    def close(self) -> None:
        """End the processes behind the crops, if there are any."""
        if isinstance(self.cropped, Generator):
            self.cropped.close()


@lru_cache(maxsize=2)
def order(seed: int, epoch: int, images: int) -> Tensor:
    """The order in which an epoch visits the images: int64 (N,), a permutation."""
    generator = torch.Generator().manual_seed(seed_of(seed, Stream.ORDER, epoch))
    return torch.randperm(images, generator=generator)


def members(
    position: int, count: int, seed: int, images: int, windows: Windows | None = None
) -> tuple[Tensor, Tensor]:
    """Epochs and indices, int64 (B,), of `count` images from a position in the endless stream of epochs.

    A batch may straddle two epochs, so every image is visited once an epoch and none is dropped (as in the
    official pipeline, where epochs only count steps).
    """
    end = position + count
    parts = []
    for epoch in range(position // images, -(-end // images)):
        first, last = max(0, position - epoch * images), min(images, end - epoch * images)
        if windows is None:
            parts.append(order(seed, epoch, images)[first:last])
        else:
            parts.append(windows.part(seed, epoch, first, last))
    return torch.arange(position, end) // images, torch.cat(parts)


def resident_batches(
    images: Tensor, plan: BatchPlan, start: int = 0, begin: Begin = untimed
) -> Generator[Cropped]:
    """Micro-batches from step `start` on, cropped on the device from all images, uint8 (N, C, H, W).

    None of them is waited for: `begin` is told that views are made.
    """
    height, width = images.shape[2:]
    share = plan.share
    for position in range(start * plan.batch_size, 2**62, plan.micro_batch_size):
        begin("views")
        epochs, indices = members(position + plan.first, share, plan.seed, plan.images)
        parts = []
        for views, count, stream in plan.parts:
            when, rows = (numbers.repeat_interleave(count) for numbers in (epochs, indices))
            view = torch.arange(share * count) % count
            heights, widths = torch.full_like(rows, height), torch.full_like(rows, width)
            boxes = views.config.crops(crop_draws(plan.seed, when, rows, view, stream), heights, widths)
            chosen = images[to_device(rows, images.device)]
            crops = crop_resize(chosen, boxes, views.size, views.config.antialias)
            parts.append(crops.div_(255).clamp_(0, 1).view(share, count, *crops.shape[1:]))
        yield Cropped(parts[0], indices, tuple(parts[1:]))


class SeveralSizes(DataError):
    """Images of several sizes, which do not make one tensor."""


def load_resident(images: Images, report: Report, poll: Callable[[], object] = never) -> Tensor:
    """All images as uint8 (N, C, H, W); one that cannot be read is replaced by another, chosen by its index.

    `poll` is called between images; it may raise, to stop.
    """
    result, bad = None, set()
    for index in range(len(images)):
        poll()
        if index % 4096 == 0:
            images.release()  # what is read once, in order, need not be kept encoded beside the pixels
        try:
            pixels = torch.from_numpy(images.array(index)).permute(2, 0, 1)
        except BadImage as failure:
            report(index, str(failure))
            bad.add(index)
            continue
        if result is None:
            # Mapped, beside the heap: so what loading frees there is not cut up, and serves the steps.
            room = mmap(-1, len(images) * pixels.numel())
            result = torch.frombuffer(room, dtype=torch.uint8).view(len(images), *pixels.shape)
        if pixels.shape != result.shape[1:]:
            here, first = ("{}x{}".format(*shape[-2:]) for shape in (pixels.shape, result.shape))
            raise SeveralSizes(
                f"{images.name(index)} is {here} pixels, the first image {first}: images of several sizes "
                "do not make one tensor. Give --data.in-memory False."
            )
        result[index] = pixels
    if result is None:
        raise DataError(NONE_READABLE.format(len(images)))
    for index in bad:
        result[index] = result[next(i for i in substitutes(index, len(images)) if i not in bad)]
    return result


def substitutes(index: int, images: int) -> Iterator[int]:
    """What stands in for an unreadable image, in order: a few drawn from its index, then its neighbours."""
    for value in uniforms((index, Stream.SUBSTITUTES, torch.arange(16)), 1)[:, 0].tolist():
        yield int(value * images)
    for step in range(1, images):
        yield (index + step) % images


def cut(picture: Any, views: Views, drawn: Tensor) -> Tensor:
    """The crops of one image, uint8 (V, C, h, w), from their draws (V, 5): a resize each, then the flip."""
    image = torch.from_numpy(pixels_of(picture)).permute(2, 0, 1)[None]
    heights, widths = (torch.full((len(drawn),), length) for length in image.shape[2:])
    crops = views.config.crops(drawn, heights, widths)
    if not views.config.antialias:
        resized = crop_resize(image.expand(len(drawn), -1, -1, -1), crops, views.size, antialias=False)
        return resized.round_().clamp_(0, 255).to(torch.uint8)
    result = []
    for (top, left, tall, wide), flip in zip(crops.boxes.tolist(), crops.flips.tolist(), strict=True):
        box = image[:, :, top : top + tall, left : left + wide]
        # Pillow's result, in a quarter of its time.
        resized = F.interpolate(box, views.size, mode="bicubic", antialias=True)
        result.append(resized.flip(3) if flip else resized)
    return torch.cat(result)


def streamed_batches(
    images: Images,
    plan: BatchPlan,
    *,
    device: torch.device,
    workers: int,
    steps: range,
    report: Report,
    poll: Callable[[], object] = never,
) -> Generator[Cropped]:
    """Micro-batches of the given steps, decoded and cropped by worker processes (in this one with 0 workers).

    `poll` is called between images and while a worker is waited for; it may raise, to stop.
    """
    micro, share = plan.micro_batch_size, plan.share
    parts = plan.parts
    shapes = [(count, views.channels, *views.size) for views, count, _ in parts]
    lengths = [prod(shape) for shape in shapes]  # bytes of an image's crops

    def cropped(task: tuple[Span, Span | None]) -> tuple[Tensor, tuple[list[int], list[tuple[int, str]]]]:
        """What a worker does: crops of a span of images in the stream of epochs, and the bad ones.

        With the span of its next task, whose images may come meanwhile.
        """
        epochs, chosen = members(*task[0], plan.seed, plan.images, plan.windows)
        images.reader.expect(images.rows[chosen.numpy()])
        if task[1] is not None:
            _, following = members(*task[1], plan.seed, plan.images, plan.windows)
            images.reader.expect(images.rows[following.numpy()])
        crops = torch.empty((len(chosen), sum(lengths)), dtype=torch.uint8)
        drawn = [
            torch.stack([crop_draws(plan.seed, epochs, chosen, view, stream) for view in range(count)], dim=1)
            for _, count, stream in parts
        ]
        bad: list[tuple[int, str]] = []
        for row, (index, *draws) in enumerate(zip(chosen.tolist(), *drawn, strict=True)):
            poll()
            part_done()
            for candidate in chain((index,), substitutes(index, plan.images)):
                try:
                    picture = images.picture(candidate)
                    break
                except BadImage as failure:
                    bad.append((candidate, str(failure)))
            else:
                return crops[:0], ([], bad)
            cuts = (cut(picture, views, some) for (views, _, _), some in zip(parts, draws, strict=True))
            crops[row] = torch.cat([crop.flatten() for crop in cuts])
        return crops, (chosen.tolist(), bad)

    starts = range(steps.start * plan.batch_size, steps.stop * plan.batch_size, micro)
    firsts = range(0, share, CHUNK)
    spans = ((start + plan.first + first, min(CHUNK, share - first)) for start in starts for first in firsts)
    own, following = tee(spans)  # each worker gets every workers-th
    tasks = zip_longest(own, islice(following, max(1, workers), None))
    arriving = in_workers(cropped, tasks, workers=workers, room=CHUNK * sum(lengths), ahead=4, poll=poll)
    in_any_order = images.reader.gathered(images.rows, poll) if plan.windows is None else nullcontext()
    with in_any_order, closing(arriving) as chunks:
        for _ in starts:
            crops = torch.empty((share, sum(lengths)), dtype=torch.uint8, device=device)
            indices: list[int] = []
            for first in firsts:
                pixels, (chosen, bad) = next(chunks)
                for index, reason in bad:
                    report(index, reason)
                if not chosen:
                    raise DataError(NONE_READABLE.format(plan.images))
                crops[first : first + len(pixels)].copy_(to_device(pixels, device), non_blocking=True)
                indices += chosen
            split = zip(crops.split(lengths, dim=1), shapes, strict=True)
            whole, *extra = (part.view(share, *shape) for part, shape in split)
            yield Cropped(whole, torch.tensor(indices), tuple(extra))

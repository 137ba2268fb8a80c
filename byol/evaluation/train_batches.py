"""Labelled images as a classifier is trained on them: one random crop of each, and its class."""

import logging
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from byol.data import batches
from byol.data.decode import BadImage
from byol.data.images import Images
from byol.errors import DataError, printable
from byol.features.features import Rows
from byol.method.crops import to_device
from byol.method.views import ViewConfig, Views
from byol.world import World

logger = logging.getLogger("byol")
UNREADABLE = -100  # in the place of a class; the loss passes over it
SIDE = 128  # pixels; up to it images are small enough to be kept in memory


@dataclass(frozen=True)
class TrainImages:
    """Labelled images on their way to a device: kept there when small, else decoded by worker processes."""

    images: Images
    classes: Tensor  # int64 (C,) which classes occur: what the columns of a classifier's logits stand for
    labels: Tensor  # int64 (N,) columns, on the device; UNREADABLE once that is known of an image
    pixels: Tensor | None  # uint8 (N, C, H, W) on the device
    workers: int
    told: set[str] = field(default_factory=set)  # the unreadable images that were warned of

    @classmethod
    def open(cls, images: Images, device: torch.device, workers: int = 0) -> "TrainImages":
        """Read small images now, if a quarter of the memory holds them; others are read in `batches`."""
        classes, labels = torch.tensor(images.labels).unique(return_inverse=True)
        opened, size = cls(images, classes, labels.to(device), None, workers), images.uniform_size()
        if size is None or max(size) > SIDE:
            return opened
        if len(images) * images.channels * prod(size) > World(0, 1, device).free_memory() // 4:
            return opened
        try:
            return replace(opened, pixels=batches.load_resident(images, opened.leave_out).to(device))
        except batches.SeveralSizes:  # which a look at some of them had not shown
            return opened
        finally:
            images.release()

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, rows: Rows) -> "TrainImages":
        """Some of the images, by their rows int64 (n,)."""
        chosen = torch.from_numpy(rows).to(self.labels.device)
        pixels = None if self.pixels is None else self.pixels[chosen]
        return replace(self, images=self.images.subset(rows), labels=self.labels[chosen], pixels=pixels)

    def leave_out(self, index: int, reason: str) -> None:
        """Learn nothing from an unreadable image: another stands in for it, perhaps one of another class."""
        self.labels[index] = UNREADABLE
        words = f"{printable(self.images.name(index))} ({reason})"
        if words not in self.told:
            logger.warning("An unreadable image is left out: %s", words)
            self.told.add(words)

    def readable(self, rows: Rows) -> Rows:
        """Those of some rows int64 (n,) whose images can be read; the others are left out, and told."""
        for row in rows.tolist() if self.pixels is None else ():
            try:
                self.images.picture(row)
            except BadImage as failure:
                self.leave_out(row, str(failure))
        good: Rows = rows[self.labels.cpu().numpy()[rows] != UNREADABLE]
        return good

    def count(self) -> int:
        """How many can be read, as far as that is known. Raises DataError when these are of one class."""
        good = self.labels[self.labels != UNREADABLE]
        if len(good.unique()) < 2:
            raise DataError(
                f"Of {self.images.description} those of one class alone can be read; expected two."
            )
        return len(good)

    def batches(
        self, size: tuple[int, int], batch_size: int, steps: int, crop_area: tuple[float, float], seed: int
    ) -> Generator[tuple[Tensor, Tensor]]:
        """For each step, on the device, views (B, C, h, w), uint8 or float in [0, 1], and columns int64 (B,).

        As the seed says, every image comes once an epoch, cropped, perhaps mirrored, no more (paper §C.1).
        """
        views = Views(size, ViewConfig(crop_area=crop_area), self.images.channels)
        windows = self.images.windows() if self.pixels is None else None
        plan = batches.BatchPlan(
            seed, len(self), batch_size, accumulation=1, views=views, crops=1, windows=windows
        )
        device = self.labels.device
        if self.pixels is not None:
            found: Iterator[batches.Cropped] = islice(batches.resident_batches(self.pixels, plan), steps)
        else:
            source, every, workers = self.images, range(steps), self.workers
            report = self.leave_out
            found = batches.streamed_batches(
                source, plan, device=device, workers=workers, steps=every, report=report
            )
        for crops, indices, _ in found:
            yield crops[:, 0], self.labels[to_device(indices, device)]


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """The mean over a batch, of logits (B, C) and columns int64 (B,), in which unreadable images count 0."""
    return F.cross_entropy(logits, y, ignore_index=UNREADABLE, reduction="sum") / len(y)

"""What the tests of batches share."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from pictures import photo

from byol.data.batches import BatchPlan, Cropped, streamed_batches
from byol.data.images import Images
from byol.method.views import ViewConfig, Views

CPU = torch.device("cpu")
COUNT = 23
PHOTOS = np.stack([photo(24, 36, seed) for seed in range(COUNT)])


def plan_for(
    images: int = COUNT,
    size: tuple[int, int] = (16, 16),
    channels: int = 3,
    config: ViewConfig | None = None,
    **changes: Any,
) -> BatchPlan:
    """Batches of 10 with crops of 16 pixels; the config is that of the views."""
    usual = {"seed": 3, "images": images, "batch_size": 10, "accumulation": 1}
    return BatchPlan(**(usual | changes), views=Views(size, config, channels))


class Reports(list[tuple[int, str]]):
    def __call__(self, index: int, reason: str) -> None:
        self.append((index, reason))


def streamed(
    images: Images,
    plan: BatchPlan,
    steps: range,
    workers: int = 0,
    report: Callable[[int, str], None] | None = None,
    **options: Any,
) -> Iterator[Cropped]:
    return streamed_batches(
        images,
        plan,
        device=CPU,
        workers=workers,
        steps=steps,
        report=Reports() if report is None else report,
        **options,
    )


def same(first: list[Cropped], second: list[Cropped]) -> bool:
    pairs = zip(first, second, strict=True)
    return all(torch.equal(a.crops, b.crops) and torch.equal(a.indices, b.indices) for a, b in pairs)

"""Which labelled images are learned from (a part of every class, paper §C.1), and which are for validation.

An image's place within its class follows from (seed, its number), so the same seed gives the same images
everywhere, and a smaller subset lies within every larger one.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from byol.data.groups import Rows
from byol.errors import ConfigError, DataError
from byol.method.draws import Stream, uniforms


@dataclass(frozen=True)
class Amount:
    """How many labelled images: a percentage of every class (at least one), or the same number of each."""

    value: float
    per_class: bool = False

    def __post_init__(self) -> None:
        whole = self.value >= 1 and float(self.value).is_integer()
        if not (whole if self.per_class else 0 < self.value <= 100):
            expected = "a whole number" if self.per_class else "above 0, at most 100"
            raise ConfigError(f"{self} of the labels were requested; expected {expected}.")

    @classmethod
    def parse(cls, text: str) -> "Amount":
        """'1', '0.5' or '10%' are percentages; '25-per-class' is a number."""
        found = re.fullmatch(r"(\d+(?:\.\d+)?)(?:\s*%|([- ]per[- ]class))?", text.strip())
        if found is None:
            raise ConfigError(
                f"{text!r} is not an amount of labels; expected a percentage such as 0.5, or 25-per-class."
            )
        return cls(float(found[1]), per_class=found[2] is not None)

    def __str__(self) -> str:
        return f"{self.value:g} per class" if self.per_class else f"{self.value:g} %"


def few(labels: Rows, amount: Amount, seed: int = 0, classes: Sequence[str] | None = None) -> Rows:
    """The images of a subset, sorted rows int64 (n,): so many of every class that occurs in `labels` (N,).

    `classes` names the classes in messages. Raises DataError when a class has fewer.
    """
    groups, chosen = by_class(labels, seed, Stream.SUBSET), []
    for rows in groups:
        count = int(amount.value) if amount.per_class else max(1, int(amount.value / 100 * len(rows) + 0.5))
        if count > len(rows):
            number = int(labels[rows[0]])
            name = classes[number] if classes else number
            raise DataError(
                f"Class {name} has {len(rows)} labelled images, of {amount} that were requested. "
                f"Request at most {min(map(len, groups))} per class, or a percentage."
            )
        chosen.append(rows[:count])
    return np.sort(np.concatenate(chosen))


def validation_split(labels: Rows, share: float, seed: int = 0) -> tuple[Rows, Rows]:
    """Rows to learn from and rows to choose settings on, both sorted: a share (below 1) of every class.

    A class of two images or more gives at least one and keeps at least one; a class of one image gives none.
    """
    return _split(by_class(labels, seed, Stream.VALIDATION), len(labels), share)


def train_test_split(labels: Rows, share: float, seed: int = 0) -> tuple[Rows, Rows]:
    """Rows to learn from and rows to score, both sorted: of every class a share, as in `validation_split`.

    Multi-label images, labels (N, classes), are divided class by class, the rarest first, so that common
    classes, which can wait, make up for what the rare ones needed (Sechidis et al. 2011).
    """
    if labels.ndim == 1:
        return _split(by_class(labels, seed, Stream.TEST), len(labels), share)
    columns = np.column_stack([labels, labels.sum(axis=1) == 0])  # images of no class are divided too
    [order] = by_class(np.zeros(len(labels), dtype=np.int64), seed, Stream.TEST)
    groups = [order[columns[order, column] == 1] for column in np.argsort(columns.sum(axis=0), kind="stable")]
    return _split(groups, len(labels), share)


def _split(groups: Sequence[Rows], count: int, share: float) -> tuple[Rows, Rows]:
    """Rows below `count` that are kept, and a share of each group; a row belongs to its first group."""
    given, taken = np.zeros(count, dtype=bool), np.zeros(count, dtype=bool)
    for rows in groups:
        wanted = min(max(1, int(share * len(rows) + 0.5)), len(rows) - 1) if share else 0
        free = rows[~taken[rows]]
        given[free[: max(wanted - int(given[rows].sum()), 0)]] = True
        taken[rows] = True
    return np.flatnonzero(~given), np.flatnonzero(given)


def by_class(labels: Rows, seed: int, stream: Stream) -> list[Rows]:
    """The rows of every class that occurs, each class in an order of its own that follows from the seed."""
    drawn = uniforms((seed, stream, torch.arange(len(labels))), 1)[:, 0].numpy()
    order = np.lexsort((drawn, labels))
    return np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)

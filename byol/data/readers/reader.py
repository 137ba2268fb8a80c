"""What stands behind `Images`: the one protocol that every kind of source follows, and items of one."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from torch import Tensor

from byol.data.decode import to_numpy
from byol.data.groups import Rows as Rows
from byol.data.labels import Labels
from byol.data.windows import Windows

SAMPLE = 64


class Reader(Protocol):
    """A number of images that are read one by one, in any order and by several processes at once."""

    where: str  # for people: "photos/", "the array"
    labels_cost_decoding: bool = False  # whether images are decoded to learn their labels

    def __len__(self) -> int: ...

    def name(self, index: int) -> str: ...

    def read(self, index: int) -> Any:
        """An image as the source holds it: what `Reading.picture` takes. Raises BadImage."""

    @cached_property
    def all_labels(self) -> Labels | None:
        """The labels of all images; None when the source has none."""
        return None

    def labels(self, rows: Rows) -> Labels | None:
        """Those of some images."""
        return self.all_labels and self.all_labels.of(rows)

    def digest(self, everything: bool) -> bytes | None:
        """Of the names and a sample of the bytes, or of every byte: None where nobody can tell."""

    def sample(self, rows: Rows) -> list[int]:
        """Places in `rows` to look at where looking at all of them would cost too much."""
        return evenly_spaced(len(rows))

    def release(self) -> None:
        """Let go of caches and open files; what is needed later is read again."""
        return

    def expect(self, rows: Rows) -> None:
        """Begin to read what will be requested next, where that helps."""
        return

    def windows(self, rows: Rows) -> Windows | None:
        """What a shuffled order of the rows should keep together, as those of a shard.

        None where they are read equally fast in any order.
        """
        return None

    def gathered(self, rows: Rows, poll: Callable[[], object]) -> AbstractContextManager[None]:
        """While the block runs, these rows can be read quickly in any order.

        Not needed in the order of `windows`.
        """
        return nullcontext()


class Selection:
    """Some items of a reader in an order of their own, with their labels: images, or samples of any kind."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.rows: Rows = np.arange(len(reader))  # (N,): which of the reader's items

    def __len__(self) -> int:
        return len(self.rows)

    def subset(self, rows: Tensor | Rows | list[int] | range) -> Self:
        """Some of them, in the order of the rows: int (n,), or a mask, bool (N,). Nothing is copied."""
        chosen = chosen_of(rows, len(self))
        known = {"_labels": self._labels and self._labels.of(chosen)} if "_labels" in vars(self) else {}
        return self._with(rows=self.rows[chosen], **known)

    @property
    def y(self) -> Rows | None:
        """`labels`, or `label_matrix`, as `Features.y`; None without labels."""
        return self._labels.values if self._labels else None

    @property
    def labels(self) -> Rows | None:
        """The class of every item, int64 (N,); None without labels and of multi-label items."""
        return self.y if self.y is not None and self.y.ndim == 1 else None

    @property
    def label_matrix(self) -> Rows | None:
        """The classes of every multi-label item, int64 (N, classes) of 0 and 1; else None."""
        return self.y if self.y is not None and self.y.ndim == 2 else None

    @property
    def classes(self) -> tuple[str, ...] | None:
        """The classes' names: a label, or a column of `label_matrix`, is a place among them."""
        return self._labels.classes if self._labels else None

    def release(self) -> None:
        """Let go of caches and open files; what is needed later is read again."""
        self.reader.release()

    @cached_property
    def _labels(self) -> Labels | None:
        return self.reader.labels(self.rows)

    def _with(self, **changes: Any) -> Self:
        changed = copy(self)
        vars(changed).update(changes)
        return changed


def names_of(paths: Sequence[Path | str]) -> list[str]:
    """What files are called: their paths or URLs from the folder on that holds all of them."""
    parts = [str(path).split("/") for path in paths]
    levels = zip(*(part[:-1] for part in parts), strict=False)
    shared = sum(1 for _ in takewhile(lambda level: len(set(level)) == 1, levels))
    return ["/".join(part[shared:]) for part in parts]


def evenly_spaced(count: int, most: int = SAMPLE) -> list[int]:
    """At most `most` indices below `count`, evenly spaced, the first and the last among them."""
    places: list[int] = np.linspace(0, count - 1, min(count, most)).astype(int).tolist()
    return places


def chosen_of(rows: Any, count: int) -> Rows:
    """The places that a subset of so many names: int (n,), or a mask, bool (count,). Raises IndexError."""
    chosen = to_numpy(rows)
    if chosen.dtype == bool and chosen.shape != (count,):
        raise IndexError(f"a mask of shape {chosen.shape} for a set of {count}")
    chosen = np.flatnonzero(chosen) if chosen.dtype == bool else chosen.astype(np.int64)
    if len(chosen) and not 0 <= chosen.min() <= chosen.max() < count:
        raise IndexError(f"rows {chosen.min()} to {chosen.max()} of a set of {count}")
    return chosen


def lengths_of(sections: Rows) -> Rows | None:
    """How many rows stand one after another in the same section, of the sections (N,) they are in.

    None where they do not come in the order of their sections.
    """
    changes = np.diff(sections)
    if (changes < 0).any():
        return None
    return np.diff(np.concatenate([[0], np.flatnonzero(changes) + 1, [len(sections)]]))

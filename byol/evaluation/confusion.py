"""Where a classifier errs: which classes are taken for which, in words and as lines of confusions.jsonl."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from byol.disk import append_text, json_lines
from byol.evaluation.inputs import labels_of
from byol.evaluation.protocols import Task
from byol.evaluation.score import Score
from byol.evaluation.tables import aligned
from byol.features.formats import Array

CONFUSIONS = "confusions.jsonl"  # beside scores.jsonl
MATRIX = 12  # classes up to which the whole table is printed; of more the worst
SAME = ("protocol", "metric", "value", "data_set", "encoder_checksum")  # in a score and its confusion
MOST_READ, LONGEST = 2**19, 200  # classes and cells of all confusions in a file; letters of a class's name
WORST, WIDTH = 10, 8  # lines, and letters of a column's name


@dataclass(frozen=True)
class Confusion:
    """How many test images of each class were taken for each, by the predictions of a score's first seed."""

    protocol: str
    metric: str
    value: float
    data_set: str
    encoder_checksum: str
    names: tuple[str, ...]  # of the classes that occur, in their order
    cells: tuple[
        tuple[int, int, int], ...
    ]  # places in `names`: an image's class, what it was taken for; images
    nowhere: tuple[str, ...]  # classes that no train image has

    @property
    def size(self) -> int:
        return len(self.names) + len(self.cells) + len(self.nowhere)

    @property
    def counts(self) -> Array:
        """Test images of each class (K,)."""
        true, _, times = np.array(self.cells).T
        return np.bincount(true, weights=times, minlength=len(self.names)).astype(np.int64)

    @property
    def right(self) -> Array:
        """Those of them that were taken for what they are (K,)."""
        true, said, times = np.array(self.cells).T
        return np.bincount(true, weights=times * (true == said), minlength=len(self.names)).astype(np.int64)

    def mistakes(self) -> list[tuple[int, int, int]]:
        """The cells of wrong predictions, the most frequent first."""
        wrong = [cell for cell in self.cells if cell[0] != cell[1] and cell[1] >= 0]
        return sorted(wrong, key=lambda cell: -cell[2])

    def shares(self, classes: Sequence[int]) -> Array:
        """Of the images of each of some classes (a row) the share taken for each of them (a column)."""
        place, found = {one: at for at, one in enumerate(classes)}, np.zeros((len(classes), len(classes)))
        for true, said, times in self.cells:
            if true in place and said in place:
                found[place[true], place[said]] = times
        return np.asarray(found / np.maximum(self.counts[list(classes)], 1)[:, None])

    def lines(self) -> list[str]:
        """For people: of a few classes a table, of many the worst ones."""
        counts, right, names = self.counts, self.right, self.names
        tested = [one for one, count in enumerate(counts) if count]
        if len(names) <= MATRIX:
            rows = [[f"{self.protocol}, %", "images", *(name[:WIDTH] for name in names)]]
            shares = self.shares(range(len(names)))
            for one in tested:
                words = (f"{100 * share:.0f}" if share else "-" for share in shares[one])
                rows.append([names[one], f"{counts[one]:,}", *words])
            lines = [
                "Of the images of each class (a row) the share taken for each (a column):",
                *aligned(rows),
            ]
        else:
            lines = [f"Most often confused in {self.protocol}:"]
            for true, said, times in self.mistakes()[:WORST]:
                lines.append(f"  {times:,} of {counts[true]:,} {names[true]} taken for {names[said]}")
            lines.append(f"Least often right in {self.protocol}:")
            for one in sorted(tested, key=lambda one: right[one] / counts[one])[:WORST]:
                lines.append(f"  {100 * right[one] / counts[one]:.0f} % of {counts[one]:,} {names[one]}")
        if self.metric == "top1" and max(counts[tested]) > 1.5 * min(counts[tested]):
            mean = 100 * np.mean(right[tested] / counts[tested])
            lines.append(f"{self.protocol}, mean per class: {mean:.1f} %; the classes differ in size")
        if self.nowhere:
            more = f" and {len(self.nowhere) - WORST:,} more" if len(self.nowhere) > WORST else ""
            some = ", ".join(self.nowhere[:WORST])
            lines.append(f"Never right, since no train image has it: {some}{more}")
        return lines


def confusion(task: Task, score: Score) -> Confusion | None:
    """Of a score as it was just found; None for multi-label images."""
    y, labels, said = labels_of(task.train), score.predictions[0].labels, score.predictions[0].classes[:, 0]
    if y.ndim != 1 or labels is None:
        return None
    known = task.test.classes or task.train.classes or range(1 + max(labels.max(), y.max()))
    occurring = np.union1d(labels, said[said >= 0]).astype(np.int64)
    names = [str(known[one]) for one in occurring]
    (true, taken), times = np.unique(np.stack([labels, said]), axis=1, return_counts=True)
    places = np.searchsorted(occurring, true), np.where(taken < 0, -1, np.searchsorted(occurring, taken))
    nowhere = (name for one, name in zip(occurring, names, strict=True) if one in labels and one not in y)
    same = {name: getattr(score, name) for name in ("protocol", "metric", "value", "data_set")}
    cells = tuple(zip(*(part.tolist() for part in (*places, times)), strict=True))
    return Confusion(
        **same, encoder_checksum=score.encoder_checksum, names=tuple(names), cells=cells,
        nowhere=tuple(nowhere),
    )  # fmt: skip


def write_confusion(found: Confusion, path: Path) -> None:
    """Append it as a line. Raises DiskError when the file cannot be written."""
    append_text(path, json.dumps(asdict(found)) + "\n")


def score_key(one: Confusion | Score) -> tuple[Any, ...]:
    """What a score, or the one that a confusion belongs to, is known by."""
    return tuple(getattr(one, name) for name in SAME)


def read_confusions(path: Path, scores: Iterable[Score]) -> dict[tuple[Any, ...], Confusion]:
    """Those of some scores in a file, by `score_key`, the newest of each.

    A line that is none is passed over, as where a kill has cut it; and so are those that do not fit among
    half a million classes and cells, more than a page could show.
    """
    wanted, room = set(map(score_key, scores)), MOST_READ
    found: dict[tuple[Any, ...], Confusion] = {}

    def read(values: Any) -> Confusion | None:
        size = sum(len(values[name]) for name in ("names", "cells", "nowhere"))
        known = tuple(values[name] for name in SAME) in wanted
        return confusion_in(values) if known and size <= room else None

    for one in json_lines(path, "cells", read):
        before = found.get(score_key(one))
        room += (before.size if before else 0) - one.size
        found[score_key(one)] = one
    return found


def confusion_in(values: Any) -> Confusion | None:
    """What a line holds; None, or any of `json_lines`' failures, where it can be none."""
    names, most = tuple(str(name)[:LONGEST] for name in values["names"]), 2**53  # more are no counts
    cells = tuple(tuple(map(int, cell)) for cell in values["cells"])
    count = len(names)
    if not cells or not all(0 <= a < count and -1 <= b < count and 0 < n < most for a, b, n in cells):
        return None
    nowhere = tuple(str(name)[:LONGEST] for name in values["nowhere"])
    return Confusion(**{**values, "names": names, "cells": cells, "nowhere": nowhere})

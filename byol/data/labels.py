"""Class labels as they come in the wild, in one form: numbers from 0, and a name for each class."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
from torch import Tensor

from byol.errors import DataError

# A larger number, of fewer images, is not a class but an id or a time stamp, and would cost gigabytes as one.
MOST_CLASSES = 2**15
LONGEST = 1_000
logger = logging.getLogger("byol")


@dataclass(frozen=True)
class Labels:
    """The class of every image, or its classes."""

    values: np.ndarray[Any, np.dtype[np.int64]]  # (N,); of multi-label images (N, classes) of 0 and 1
    classes: tuple[str, ...]  # names; a value, or a column, is a place in it

    def of(self, rows: Any) -> "Labels":
        """Those of some images."""
        return Labels(self.values[rows], self.classes)

    def renumbered(self, classes: tuple[str, ...]) -> "Labels":
        """The same labels as places in other names, which hold all of these."""
        place = {name: number for number, name in enumerate(classes)}
        places = np.array([place[name] for name in self.classes], dtype=np.int64)
        if self.values.ndim == 1:
            return Labels(places[self.values], classes)
        values = np.zeros((len(self.values), len(classes)), dtype=np.int64)
        values[:, places] = self.values
        return Labels(values, classes)


def class_labels(values: Any, count: int, names: Sequence[str] | None = None, of: int = 0) -> Labels | None:
    """Labels from an array, tensor or sequence of `count` whole numbers or words; None if an image has none.

    Words become numbers in alphabetical order; numbers are named by `names`, or by themselves. A negative
    number means "no class" (as in STL-10 and in Hugging Face's test sets), and then nothing has one.
    Multi-label images have a row of 0 and 1 each, a column a class. Raises DataError.
    """
    expected = f"expected one label for each of the {count:,} images."
    try:
        array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
        if array.ndim and array.dtype == object and all(isinstance(row, np.ndarray) for row in array):
            array = np.array(array.tolist())  # of a parquet file
    except ValueError as failure:
        raise DataError(f"The labels are lists of several lengths; {expected}") from failure
    if array.ndim == 0:
        raise DataError(f"The labels are a {type(values).__name__}; {expected} Give them as a list.")
    known = tuple(names or ())
    if is_matrix(array) and len(array) == count:
        columns = range(array.shape[1])
        return Labels(array.astype(np.int64), (*known, *map(str, columns[len(known) :]))[: len(columns)])
    if array.shape not in ((count,), (count, 1)):
        raise DataError(f"The labels have the shape {array.shape}; {expected}")
    array = array.reshape(count)
    if array.dtype.kind == "O" and all(isinstance(value, str) for value in array):
        if any(len(value) > LONGEST for value in array):  # each would take as much memory as the longest
            raise DataError(f"Some labels are of more than {LONGEST:,} letters; expected names of classes.")
        array = array.astype(str)
    if array.dtype.kind == "O" and all(isinstance(value, Integral) for value in array):
        array = np.array(array.tolist())
    if array.dtype.kind == "S":
        array = np.char.decode(array, "utf-8", "backslashreplace")
    if array.dtype.kind == "U":
        words, numbers = np.unique(array, return_inverse=True)
        return Labels(numbers.astype(np.int64), tuple(words.tolist()))
    if array.dtype.kind in "fO" and (missing := sum(value is None or value != value for value in array)):
        raise DataError(f"{missing:,} of {count:,} images have no label; {expected}")
    if array.dtype.kind not in "biu":
        raise DataError(f"The labels are {array.dtype}; expected whole numbers from 0, or words.")
    numbers = array.astype(np.int64)
    if count and numbers.min() < 0:
        return None
    classes = int(numbers.max(initial=-1)) + 1
    if classes > max(MOST_CLASSES, count, of, len(known)):
        raise DataError(
            f"The labels of {count:,} images go up to {classes - 1}; expected the numbers of classes, from "
            "0. Give the classes as words, or numbered without gaps."
        )
    return Labels(numbers, (*known, *map(str, range(len(known), classes))))


def is_matrix(labels: np.ndarray[Any, Any]) -> bool:
    """Whether labels are rows of 0 and 1, one for each class: of multi-label images."""
    numbers = labels.ndim == 2 and labels.shape[1] > 1 and labels.dtype.kind in "biuf"
    return numbers and bool(np.isin(labels, (0, 1)).all())


def found_labels(values: Any, count: int, names: Sequence[str] | None = None, of: int = 0) -> Labels | None:
    """As `class_labels`, for labels that nobody requested: unusable ones are ignored with a warning."""
    try:
        return class_labels(values, count, names, of)
    except DataError as failure:
        logger.warning("The images count as unlabelled. %s", failure)
        return None

"""Class labels as they come in the wild, made one kind: numbers from 0, with a name for each class."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from byol.errors import DataError

MOST_CLASSES = 1_000_000  # a larger number is no class: an id or a time stamp, named by mistake
logger = logging.getLogger("byol")


@dataclass(frozen=True)
class Labels:
    """The class of every image, or its classes."""

    values: np.ndarray[
        Any, np.dtype[np.int64]
    ]  # (N,); where an image has several labels (N, classes) of 0 and 1
    classes: tuple[str, ...]  # names; a value, or a column, is a place in it

    def renumbered(self, classes: tuple[str, ...]) -> "Labels":
        """The same labels as places in other names, which hold all of these."""
        places = np.array([classes.index(name) for name in self.classes], dtype=np.int64)
        if self.values.ndim == 1:
            return Labels(places[self.values], classes)
        values = np.zeros((len(self.values), len(classes)), dtype=np.int64)
        values[:, places] = self.values
        return Labels(values, classes)


def class_labels(values: Any, count: int, names: Sequence[str] | None = None) -> Labels | None:
    """Labels from an array, tensor or sequence of `count` whole numbers or words; None when some image has no class.

    Words become numbers in alphabetical order; numbers are named by `names`, or by themselves. A negative number means
    "no class" (as in STL-10 and in Hugging Face's test sets), and then nothing has one. Several labels an image are a row
    of 0 and 1 for each, a column a class. Raises DataError.
    """
    try:
        array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
        if array.dtype == object and all(
            isinstance(row, np.ndarray) for row in array
        ):  # a parquet file's column of lists
            array = np.array(array.tolist())
    except ValueError as failure:
        raise DataError(
            "The labels are lists of several lengths; expected one label for each image."
        ) from failure
    if is_matrix(array) and len(array) == count:
        classes = tuple(names or ())[: array.shape[1]]
        return Labels(array.astype(np.int64), classes + tuple(map(str, range(len(classes), array.shape[1]))))
    if array.shape not in ((count,), (count, 1)):
        raise DataError(
            f"The labels have the shape {array.shape}; expected one label for each of the {count:,} images."
        )
    array = array.reshape(count)
    if array.dtype.kind == "O" and all(isinstance(value, str) for value in array):
        array = array.astype(str)
    if array.dtype.kind in "US":
        words, numbers = np.unique(array.astype(str), return_inverse=True)
        return Labels(numbers.astype(np.int64), tuple(words.tolist()))
    if array.dtype.kind not in "biu":
        raise DataError(f"The labels are {array.dtype}; expected whole numbers from 0, or words.")
    numbers = array.astype(np.int64)
    if count and numbers.min() < 0:
        return None
    highest = int(numbers.max(initial=-1))
    if highest >= MOST_CLASSES:
        raise DataError(f"The labels go up to {highest}; expected the numbers of classes, from 0.")
    classes = tuple(names or ())
    return Labels(numbers, classes + tuple(str(number) for number in range(len(classes), highest + 1)))


def is_matrix(labels: np.ndarray[Any, Any]) -> bool:
    """Whether labels are rows of 0 and 1, one for each class: images with several labels, or with none."""
    return (
        labels.ndim == 2
        and labels.shape[1] > 1
        and labels.dtype.kind in "biuf"
        and bool(np.isin(labels, (0, 1)).all())
    )


def found_labels(values: Any, count: int, names: Sequence[str] | None = None) -> Labels | None:
    """As `class_labels`, for labels that came with the images unasked: unusable ones are told and left aside."""
    try:
        return class_labels(values, count, names)
    except DataError as failure:
        logger.warning("The images count as unlabelled. %s", failure)
        return None

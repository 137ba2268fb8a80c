"""Images that are the items of a Python sequence: lists, torchvision datasets, Hugging Face datasets."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from byol.data.decode import BadImage, to_numpy
from byol.data.labels import Labels, class_labels, found_labels
from byol.data.readers.folder import read_file
from byol.data.readers.parquet import IMAGE_NAMES, LABEL_NAMES
from byol.data.readers.reader import Reader, Rows, evenly_spaced
from byol.errors import DataError

TOLD = 1_000  # images from which on it is told that they are decoded for their labels
logger = logging.getLogger("byol")


class Items(Reader):
    """A sequence of images, of (image, label), or of mappings with `image` or `img` and perhaps `label`.

    An image is a PIL image, an array, a tensor, a picture's bytes, or its path.
    """

    def __init__(self, items: Any, where: str) -> None:
        items = by_position(items)
        self.items, self.where = items, where
        self.column, self.classes = labels_and_names(items)
        self.labels_cost_decoding = self.column is None and not isinstance(items, list | tuple)

    def __len__(self) -> int:
        return len(self.items)

    def name(self, index: int) -> str:
        return str(index)

    def read(self, index: int) -> Any:
        image = self._split(index)[0]
        if isinstance(image, Mapping):  # {bytes, path}
            image = image.get("bytes") or image.get("path")
        elif isinstance(image, Image.Image) and getattr(image, "fp", None):
            # Not read yet: workers that share the file's pointer would disturb each other.
            image = image.copy() if image.tell() else getattr(image, "filename", "") or image
        if isinstance(image, str | Path):
            return read_file(image)
        if isinstance(image, bytes | Image.Image | Tensor | np.ndarray):
            return image
        expected = "a PIL image, an array, a tensor, a path or bytes, alone or as (image, label)"
        raise BadImage(f"it is of type {type(image).__name__}; expected {expected}")

    def labels(self, rows: Rows) -> Labels | None:
        """From the sequence's own column where it has one, else from these items, which are then read."""
        if self.column is None:
            first = next(self._known_labels(rows), None)
            try:  # what stands beside an image need not be a label
                if class_labels([first], 1, of=len(self)) is None:
                    return None
            except DataError:
                return None
            if not isinstance(first, str):
                return found_labels(self._labels_of(rows), len(rows), self.classes, of=len(self))
        return super().labels(rows)

    def digest(self, everything: bool) -> bytes | None:
        """Of a sample; whether a dataset still gives all that it gave before cannot be told."""

        def sampled() -> bytes:
            digest = blake2b()
            for index in evenly_spaced(len(self)):
                for part in self._bytes(index):
                    digest.update(part)
            return digest.digest()

        if everything:
            return None
        first, second = sampled(), sampled()  # which random transforms make differ
        return f"{type(self.items).__name__} {len(self)}".encode() + (first if first == second else b"")

    def _bytes(self, index: int) -> Iterator[bytes]:
        """What an item is known by."""
        try:
            raw = self.read(index)
            yield raw if isinstance(raw, bytes) else to_numpy(raw).tobytes()
        except (BadImage, OSError) as failure:  # OSError: a damaged PIL image, not loaded before
            yield str(failure).encode()

    @cached_property
    def all_labels(self) -> Labels | None:
        """Words are numbered in the order of all of them."""
        values = self._labels_of(np.arange(len(self))) if self.column is None else self.column
        return found_labels(values, len(self), self.classes)

    def _labels_of(self, rows: Rows) -> list[Any]:
        if self.labels_cost_decoding and len(rows) > TOLD:
            logger.warning(
                f"{len(rows):,} images of {self.where} are decoded once more to learn their labels: it has "
                "no `targets`. Give labels=[...] to `open_images` to spare that."
            )
        labels = list(self._known_labels(rows))
        if len(labels) < len(rows):
            logger.warning(
                f"{len(rows) - len(labels)} of {len(rows):,} images of {self.where} cannot be read, and with "
                "them their labels: all count as unlabelled. Give labels=[...] to `open_images`."
            )
            return [-1] * len(rows)
        return labels

    def _known_labels(self, rows: Rows) -> Iterator[Any]:
        """The labels of those items that can be read."""
        for row in rows.tolist():
            with suppress(BadImage):
                yield self._label(row)

    def _label(self, index: int) -> Any:
        label = self._split(index)[1]
        return to_numpy(label).tolist() if isinstance(label, Tensor | np.ndarray) else label

    def _split(self, index: int) -> tuple[Any, Any]:
        """The image of an item, and its label or None. Raises BadImage."""
        try:
            item = self.items[index]
        except Exception as failure:  # a foreign dataset: whatever it raises, it costs this one image
            raise BadImage(f"{type(failure).__name__}: {failure}") from failure
        if isinstance(item, Mapping):
            found = [item[name] for name in IMAGE_NAMES if name in item]
            if not found:
                raise BadImage(f"it has the keys {', '.join(map(str, item)) or 'none'}; expected `image`")
            return found[0], next((item[name] for name in LABEL_NAMES if name in item), None)
        if isinstance(item, tuple | list) and item:
            return item[0], item[1] if len(item) > 1 else None
        return item, None


def by_position(items: Any) -> Any:
    """A column of pandas, which gives its items by their labels, as an array; anything else as it is."""
    if not hasattr(items, "iloc"):
        return items
    if items.ndim != 1:
        raise DataError(
            f"A {type(items).__name__} is a table; expected its column of images, such as "
            'table["path"], and labels=table["label"]; of rows that are samples, table.to_numpy().'
        )
    return items.to_numpy()


def labels_and_names(items: Any) -> tuple[Any, Any]:
    """A dataset's column of labels, known without reading an image, and its classes' names; None without."""
    if hasattr(items, "dataset") and hasattr(items, "indices"):  # torch.utils.data.Subset
        column, names = labels_and_names(items.dataset)
        return None if column is None else [column[index] for index in items.indices], names
    if hasattr(items, "column_names") and hasattr(items, "features"):  # datasets.Dataset
        for name in LABEL_NAMES:
            if name in items.column_names:
                return list(items[name]), getattr(items.features[name], "names", None)
        return None, None
    names = getattr(items, "classes", None)
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        names = None
    for name in ("targets", "labels") if getattr(items, "target_transform", None) is None else ():
        labels: Any = getattr(items, name, None)
        if hasattr(labels, "__len__") and not isinstance(labels, Mapping) and len(labels) == len(items):
            return labels, names
    return None, names

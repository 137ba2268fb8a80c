"""Images that are the items of a Python sequence: lists of pictures, torchvision datasets, Hugging Face datasets."""

from collections.abc import Mapping
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from byol.data.decode import BadImage, Pixels, open_picture, simplified
from byol.data.labels import Labels, found_labels, is_matrix
from byol.data.readers.arrays import channel_axis, plain_pixels, to_numpy
from byol.data.readers.folder import read_file
from byol.data.readers.parquet import IMAGE_NAMES, LABEL_NAMES
from byol.data.spread import spread
from byol.errors import DataError


class Items:
    """A sequence whose items are images, or (image, label), or mappings with `image` or `img` and perhaps `label`.

    An image is a PIL image, an array or tensor (H, W), (H, W, C) or (C, H, W), the bytes of a picture, or its path.
    Raises DataError when none of a sample of the items can be read.
    """

    def __init__(self, items: Any, where: str, channels: int | None, max_pixels: int) -> None:
        self.items, self.where, self.max_pixels = items, where, max_pixels
        reasons: list[str] = []
        for index in spread(len(items)):
            try:
                self.channels = channels or channels_of(split_item(self._item(index))[0])
                self.picture(index)
                return
            except BadImage as failure:
                reasons.append(str(failure))
        raise DataError(
            f"No image in {where} can be read. The first: {reasons[0] if reasons else 'there is none'}. Expected PIL images, "
            "arrays, tensors or paths, alone or as (image, label) or {'image': ..., 'label': ...}."
        )

    def __len__(self) -> int:
        return len(self.items)

    def name(self, index: int) -> str:
        return str(index)

    def picture(self, index: int) -> Image.Image | Pixels:
        image = split_item(self._item(index))[0]
        if isinstance(image, Tensor | np.ndarray):
            array = to_numpy(image) if isinstance(image, Tensor) else image
            if array.ndim not in (2, 3) or 0 in array.shape:
                raise BadImage(f"it has the shape {array.shape}; expected (H, W), (H, W, C) or (C, H, W)")
            return plain_pixels(
                array, channel_axis(array.shape, self.channels, isinstance(image, Tensor)), self.channels
            )
        if self.channels not in (1, 3):
            raise BadImage(f"pictures have 3 channels (colour) or 1 (gray), and {self.channels} are wanted")
        if isinstance(image, Image.Image) and not _unread(image):
            return simplified(image, self.channels, self.max_pixels)
        return open_picture(_bytes_of(image), channels=self.channels, max_pixels=self.max_pixels)

    def size(self, index: int) -> tuple[int, int]:
        picture = self.picture(index)
        return (picture.height, picture.width) if isinstance(picture, Image.Image) else picture.shape[:2]

    @cached_property
    def labels(self) -> Labels | None:
        """From the sequence's own column of labels where it has one, else from the items, which are then all read once."""
        column = label_column(self.items)
        if column is None:
            if not is_label(self._label(0)):
                return None
            column = [self._label(index) for index in range(len(self))]
        return found_labels(column, len(self), class_names(self.items))

    def identity(self) -> bytes:
        """A digest of a sample of the pictures, left out where reading them twice gives two answers (random transforms)."""
        digests = [self._sampled() for _ in range(2)]
        return f"{type(self.items).__name__} {len(self)}".encode() + (
            digests[0] if digests[0] == digests[1] else b""
        )

    def checksum(self) -> None:
        """Nobody can tell whether a foreign dataset still gives what it gave."""

    def release(self) -> None:
        """Nothing is kept besides the sequence itself."""

    def _sampled(self) -> bytes:
        digest = blake2b()
        for index in spread(len(self)):
            try:
                digest.update(np.asarray(self.picture(index)).tobytes())
            except BadImage as failure:
                digest.update(str(failure).encode())
        return digest.digest()

    def _item(self, index: int) -> Any:
        try:
            return self.items[index]
        except Exception as failure:  # a foreign dataset: whatever it raises, it costs this one image
            raise BadImage(f"{type(failure).__name__}: {failure}") from failure

    def _label(self, index: int) -> Any:
        try:
            label = split_item(self._item(index))[1]
        except BadImage:
            return -1
        return label.item() if isinstance(label, Tensor | np.ndarray) and label.ndim == 0 else label


def split_item(item: Any) -> tuple[Any, Any]:
    """The image of an item, and its label or None. Raises BadImage."""
    if isinstance(item, Mapping):
        found = [item[name] for name in IMAGE_NAMES if name in item]
        if not found:
            raise BadImage(f"it has the keys {', '.join(map(str, item)) or 'none'}; expected `image`")
        return found[0], next((item[name] for name in LABEL_NAMES if name in item), None)
    if isinstance(item, tuple | list) and item:
        return item[0], item[1] if len(item) > 1 else None
    return item, None


def channels_of(image: Any) -> int:
    """The channels of an array or tensor; 3 for any other picture."""
    if not isinstance(image, Tensor | np.ndarray) or image.ndim not in (2, 3):
        return 3
    axis = channel_axis(tuple(image.shape), None, isinstance(image, Tensor))
    return 1 if axis is None else int(image.shape[axis])


def is_label(label: Any) -> bool:
    """Whether an item's second part can be a class, a whole number or a word, or a row of 0 and 1 for several classes."""
    if isinstance(label, Tensor):
        label = to_numpy(label)
    elif isinstance(label, list | tuple) and all(isinstance(value, int) for value in label):
        label = np.array(label)
    if isinstance(label, np.ndarray):
        return label.ndim == 1 and is_matrix(label[None])
    return isinstance(label, int | np.integer | str)


def label_column(items: Any) -> Any:
    """All labels of a dataset without reading its images, or None: `targets`, `labels`, a column, or those of a subset."""
    if hasattr(items, "dataset") and hasattr(items, "indices"):  # torch.utils.data.Subset
        whole = label_column(items.dataset)
        return None if whole is None else [whole[index] for index in items.indices]
    if hasattr(items, "column_names") and hasattr(items, "features"):  # datasets.Dataset
        name = next((name for name in LABEL_NAMES if name in items.column_names), None)
        return None if name is None else list(items[name])
    if getattr(items, "target_transform", None) is not None:
        return None
    columns: list[Any] = [getattr(items, name, None) for name in ("targets", "labels")]
    return next(
        (column for column in columns if hasattr(column, "__len__") and len(column) == len(items)), None
    )


def class_names(items: Any) -> list[str] | None:
    """The names of a dataset's classes, where it tells them."""
    if hasattr(items, "dataset") and hasattr(items, "indices"):
        return class_names(items.dataset)
    features = getattr(items, "features", None)
    if isinstance(features, Mapping):
        return next(
            (getattr(features[name], "names", None) for name in LABEL_NAMES if name in features), None
        )
    names = getattr(items, "classes", None)
    return (
        list(names)
        if isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
        else None
    )


def _unread(image: Image.Image) -> bool:
    """Whether a PIL image is still an open file; workers that read through one file pointer would disturb each other."""
    return getattr(image, "fp", None) is not None and bool(getattr(image, "filename", ""))


def _bytes_of(image: Any) -> bytes:
    """The encoded bytes of a picture given as bytes, as a path, as {bytes, path} or as an unread PIL image."""
    if isinstance(image, Mapping):
        image = image.get("bytes") or image.get("path")
    elif isinstance(image, Image.Image):
        image = image.filename  # type: ignore[attr-defined]
    if isinstance(image, bytes):
        return image
    if isinstance(image, str | Path):
        return read_file(image)
    raise BadImage(
        f"it is of type {type(image).__name__}; expected a PIL image, an array, a tensor, a path or bytes"
    )

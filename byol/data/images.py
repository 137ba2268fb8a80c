"""`Images`: what every source of pictures becomes, and all the rest of the program knows of them."""

import glob
import os
from collections import Counter
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image
from torch import Tensor

from byol.data.decode import MAX_PIXELS, BadImage, Pixels, header_size, open_picture
from byol.data.labels import Labels, class_labels
from byol.data.readers.arrays import Arrays, array_file, to_numpy
from byol.data.readers.dataset import Items
from byol.data.readers.folder import SUFFIXES, FileReader, listed, scan
from byol.data.readers.parquet import SPLITS, ParquetReader, Rows, shards
from byol.data.spread import spread
from byol.errors import DataError, did_you_mean, printable


class Source(Protocol):
    """What stands behind `Images`: a number of pictures that are read one by one."""

    where: str  # for people: "photos/", "an array of shape (100, 32, 32, 3)"
    channels: int

    @property
    def labels(self) -> Labels | None: ...
    def __len__(self) -> int: ...
    def name(self, index: int) -> str: ...
    def picture(self, index: int) -> Image.Image | Pixels: ...
    def size(self, index: int) -> tuple[int, int]: ...
    def identity(self) -> bytes: ...
    def checksum(self) -> bytes | None: ...
    def release(self) -> None: ...


class Images:
    """A set of images, read one by one. `open_images` makes them."""

    def __init__(self, source: Source, rows: Rows | None = None, labels: Labels | None = None) -> None:
        self._source = source
        self._rows = rows  # int64 (N,): which of the source's images, all when None
        self._given = labels  # of all the source's images, in place of its own

    def __len__(self) -> int:
        return len(self._source) if self._rows is None else len(self._rows)

    def name(self, index: int) -> str:
        """A file's path from the folder it was found in, `file.parquet:row`, or the number of an array's image."""
        return self._source.name(self._row(index))

    def picture(self, index: int) -> Image.Image | Pixels:
        """One image as its source has it: a PIL image (mode RGB or L), or uint8 (H, W, C). Raises BadImage."""
        return self._source.picture(self._row(index))

    def array(self, index: int) -> Pixels:
        """One image as uint8 (H, W, C), a copy. Raises BadImage."""
        pixels: Pixels = np.array(self.picture(index))
        return pixels[:, :, None] if pixels.ndim == 2 else pixels

    @property
    def channels(self) -> int:
        return self._source.channels

    @property
    def labels(self) -> np.ndarray[Any, np.dtype[np.int64]] | None:
        """The class of every image, int64 (N,); None without labels or with several an image. Read when first asked for."""
        return self._labels(dimensions=1)

    @property
    def label_matrix(self) -> np.ndarray[Any, np.dtype[np.int64]] | None:
        """Which classes every image is of, int64 (N, classes) of 0 and 1, where images have several labels; else None."""
        return self._labels(dimensions=2)

    @property
    def classes(self) -> tuple[str, ...] | None:
        """The classes' names: a label, or a column of `label_matrix`, is a place among them. None without labels."""
        return None if self._all_labels is None else self._all_labels.classes

    def with_classes(self, classes: tuple[str, ...]) -> "Images":
        """The same images with their labels numbered by other names, which hold all of theirs."""
        labels = self._all_labels
        return self if labels is None else Images(self._source, self._rows, labels.renumbered(classes))

    def subset(self, rows: Tensor | Rows | list[int]) -> "Images":
        """Some of the images, in the given order: int (n,) or, as a mask, bool (N,). Nothing is copied."""
        chosen = to_numpy(rows) if isinstance(rows, Tensor) else np.asarray(rows)
        if chosen.dtype == bool and chosen.shape != (len(self),):
            raise IndexError(f"a mask of shape {chosen.shape} for {len(self)} images")
        chosen = np.flatnonzero(chosen) if chosen.dtype == bool else chosen.astype(np.int64)
        if len(chosen) and not 0 <= chosen.min() <= chosen.max() < len(self):
            raise IndexError(f"rows {chosen.min()} to {chosen.max()} of {len(self)} images")
        return Images(self._source, chosen if self._rows is None else self._rows[chosen], self._given)

    def uniform_size(self) -> tuple[int, int] | None:
        """Height and width when all images share them, else None. Of files a spread sample of 64 headers is looked at."""
        seen: tuple[int, int] | None = None
        for index in spread(len(self)):
            try:
                size = self._source.size(self._row(index))
            except BadImage:
                continue
            if seen is not None and size != seen:
                self.release()
                return None
            seen = size
        self.release()
        return seen

    def fingerprint(self) -> str:
        """A hexadecimal digest that changes when the images do: their names, their number, or a sample of what they hold."""
        digest = blake2b(self._source.identity(), digest_size=16)
        if self._rows is not None:
            digest.update(self._rows.tobytes())
        return digest.hexdigest()

    def checksum(self) -> str | None:
        """As `fingerprint`, of every byte that the images are read from, and of how; None where nobody can tell."""
        held = self._source.checksum()
        return None if held is None else self.fingerprint() + blake2b(held, digest_size=16).hexdigest()

    @property
    def description(self) -> str:
        """For people: "1,234 images in photos/ (5 classes)"."""
        count = f"{len(self):,}" if self._rows is None else f"{len(self):,} of {len(self._source):,}"
        classes = (
            ""
            if self.classes is None
            else f" ({len(self.classes)} {'class' if len(self.classes) == 1 else 'classes'})"
        )
        return f"{count} {'image' if count == '1' else 'images'} in {self._source.where}{classes}"

    def release(self) -> None:
        """Let go of caches and open files; what is needed later is read again."""
        self._source.release()

    def gathered(self) -> AbstractContextManager[None]:
        """For a while, have pictures that are slow to read in a shuffled order, those in parquet, ready to be read in any."""
        reader = self._source.reader if isinstance(self._source, Encoded) else None
        return reader.gathered(self._rows) if isinstance(reader, ParquetReader) else nullcontext()

    def _labels(self, dimensions: int) -> np.ndarray[Any, np.dtype[np.int64]] | None:
        labels = self._all_labels
        if labels is None or labels.values.ndim != dimensions:
            return None
        return labels.values if self._rows is None else labels.values[self._rows]

    @property
    def _all_labels(self) -> Labels | None:
        return self._given or self._source.labels

    def _row(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        return index if self._rows is None else int(self._rows[index])


class Encoded:
    """Pictures that are read as encoded bytes: files, or rows of parquet files."""

    def __init__(
        self,
        reader: FileReader | ParquetReader,
        where: str,
        channels: int | None,
        max_pixels: int,
        *,
        folders: bool = False,
    ) -> None:
        if channels not in (None, 1, 3):
            raise DataError(
                f"{channels} channels were asked for, but pictures in {where} give 3 (colour) or 1 (gray)."
            )
        self.reader, self.where, self.max_pixels = reader, where, max_pixels
        self.channels = channels or 3
        self.folders = folders  # the first folder level names the classes

    def __len__(self) -> int:
        return len(self.reader)

    def name(self, index: int) -> str:
        return self.reader.name(index)

    def picture(self, index: int) -> Image.Image:
        return open_picture(self.reader.read(index), channels=self.channels, max_pixels=self.max_pixels)

    def size(self, index: int) -> tuple[int, int]:
        return header_size(self.reader.read(index))

    @cached_property
    def labels(self) -> Labels | None:
        if isinstance(self.reader, ParquetReader):
            return self.reader.labels()
        found = self.reader.first_folders() if self.folders else None
        return None if found is None else Labels(*found)

    def identity(self) -> bytes:
        return self.reader.identity()

    def checksum(self) -> bytes:
        return f"{self.channels} {self.max_pixels} ".encode() + self.reader.checksum()

    def release(self) -> None:
        self.reader.release()


def open_images(
    source: Any, *, channels: int | None = None, labels: Any = None, max_pixels: int = MAX_PIXELS
) -> Images:
    """Images from nearly anything.

    A folder, nested to any depth: its first level names the classes when there are several folders and no image beside
    them. A text file of paths (.txt, .lst), parquet files, .npy or .npz. A pattern such as 'data/train-*.parquet'. Arrays
    and tensors (N, H, W), (N, H, W, C) or (N, C, H, W): uint8, 16 bits, or floats from 0 to 1. Any sequence of paths (an
    array too), of images (PIL, arrays, tensors) or of (image, label), such as a torchvision or Hugging Face dataset.

    `channels` is 3 for colour or 1 for gray, for arrays any number; by default 3 for pictures, an array's own for arrays.
    `labels`, numbers from 0 or words, one an image, take the place of the source's own; where images have several labels, rows
    of 0 and 1, a column a class. Larger pictures than `max_pixels` count as unreadable. Raises DataError.
    """
    if channels is not None and channels < 1:
        raise DataError(f"channels is {channels}; expected at least 1.")
    images = source if isinstance(source, Images) else Images(_source(source, channels, max_pixels))
    if channels not in (None, images.channels):
        raise DataError(
            f"These images were opened with {images.channels} channels and {channels} are needed: open them so."
        )
    if labels is None:
        return images
    if images._rows is not None:
        raise DataError(
            "Labels were given for a subset of images. Give them for all images, then take the subset."
        )
    given = class_labels(labels, len(images))
    if given is None:
        raise DataError("The labels hold negative numbers; expected the numbers of classes, from 0.")
    return Images(images._source, labels=given)


def _source(source: Any, channels: int | None, max_pixels: int) -> Source:
    if isinstance(source, str | os.PathLike):
        return _path_source(os.fsdecode(source), channels, max_pixels)
    if isinstance(source, Tensor):
        return Arrays(to_numpy(source), "the tensor", channels, tensor=True)
    if (
        isinstance(source, np.ndarray)
        and source.ndim == 1
        and all(isinstance(item, str | os.PathLike) for item in source)
    ):
        source = source.tolist()  # an array of paths, as scikit-learn cuts lists into
    if isinstance(source, np.ndarray):
        return Arrays(source, "the array", channels)
    if isinstance(source, Mapping):
        keys = ", ".join(map(str, source)) or "none"
        raise DataError(f"A mapping (keys: {keys}) is no set of images. Give one of its values.")
    if isinstance(source, bytes) or not hasattr(source, "__len__") or not hasattr(source, "__getitem__"):
        raise DataError(
            f"An object of type {type(source).__name__} is no set of images; expected a path, an array or tensor, or a "
            "sequence with a length and items. Of a data loader, give its dataset."
        )
    plain = isinstance(source, list | tuple)
    where = f"the {type(source).__name__}" if plain else type(source).__name__
    if len(source) == 0:
        raise DataError(f"There is no image in {where}; expected at least one.")
    if plain and all(isinstance(item, str | os.PathLike) for item in source):
        return _files_source([os.fsdecode(item) for item in source], where, channels, max_pixels)
    return Items(source, where, channels, max_pixels)


def _path_source(text: str, channels: int | None, max_pixels: int) -> Source:
    """What a path leads to, by what is there and, for a file, by its suffix."""
    if not text:
        raise DataError("The path of the images is empty; expected a folder or a file of images.")
    path, where = Path(text).expanduser(), printable(text)
    suffix = path.suffix.lower()
    if os.path.isdir(path):
        return _folder_source(path, f"{where.rstrip('/')}/", channels, max_pixels)
    if not os.path.exists(path):
        found = sorted(glob.glob(str(path), recursive=True)) if glob.has_magic(text) else []
        if not found:
            raise DataError(_missing(path, where))
        return _files_source(found, where, channels, max_pixels)
    if not os.path.isfile(path):  # a pipe would be waited for
        raise DataError(f"{where} is no regular file; expected a folder or a file of images.")
    if suffix in (".txt", ".lst"):
        return _checked(Encoded(listed(path), where, channels, max_pixels))
    if suffix == ".parquet":
        return _checked(Encoded(ParquetReader([path]), where, channels, max_pixels))
    if suffix in (".npy", ".npz"):
        return array_file(path, where, channels)
    if os.fsencode(suffix) in SUFFIXES:
        raise DataError(
            f"{where} is a single picture; expected many. Give its folder, or [path] as a list of one."
        )
    raise DataError(
        f"{where} is of no kind that is read here; expected a folder, a text file of paths (.txt, .lst), .parquet, .npy "
        "or .npz. An archive must be unpacked first."
    )


def _folder_source(path: Path, where: str, channels: int | None, max_pixels: int) -> Source:
    files = scan(path)
    if len(files) == 0:
        if found := shards(path):
            return _checked(Encoded(ParquetReader(found), where, channels, max_pixels))
        raise DataError(_nothing_in(path, where))
    source = Encoded(files, where, channels, max_pixels, folders=True)
    classes = set() if source.labels is None else {name.lower() for name in source.labels.classes}
    if classes and classes <= SPLITS:
        names = ", ".join(sorted(classes))
        raise DataError(
            f"{where} holds the splits {names}, not classes. Give one of them, such as {where}{min(classes)}."
        )
    return source


def _files_source(names: list[str], where: str, channels: int | None, max_pixels: int) -> Source:
    """Files by their names, relative to the folder the program runs in: all parquet, or all pictures."""
    parquet = [name.lower().endswith(".parquet") for name in names]
    if all(parquet):
        return _checked(Encoded(ParquetReader([Path(name) for name in names]), where, channels, max_pixels))
    if any(parquet):
        raise DataError(f"{where} mixes parquet files and others. Give only parquet files, or only pictures.")
    return _checked(
        Encoded(FileReader(Path.cwd(), [os.fsencode(name) for name in names]), where, channels, max_pixels)
    )


def _checked(source: Encoded) -> Encoded:
    """Refuse a source of no images, or one whose files are nowhere: most likely they are looked for in the wrong place."""
    reader = source.reader
    if len(reader) == 0:
        raise DataError(f"There is no image in {source.where}; expected at least one.")
    if isinstance(reader, FileReader):
        paths = [os.path.join(reader.root, reader.raw_name(index)) for index in spread(len(reader))]
        if not any(os.path.exists(path) for path in paths):
            first = printable(os.fsdecode(paths[0]))
            raise DataError(
                f"None of the files named in {source.where} exists; the first was looked for as {first}. "
                "Paths in a text file are relative to its folder, others to the folder the program runs in."
            )
    return source


def _missing(path: Path, where: str) -> str:
    """What to say of a path that leads nowhere: up to where it is right, and what is similar there."""
    if "://" in where:
        return f"{where} is an address; images are read from files only. Download them first."
    parent, wrong = path.absolute().parent, path.name
    while not os.path.isdir(parent) and parent != parent.parent:
        parent, wrong = parent.parent, parent.name
    try:
        near = did_you_mean(wrong, os.listdir(parent)[:10_000])
    except OSError as failure:
        return (
            f"{where} cannot be looked for: {printable(str(parent))} cannot be listed ({failure.strerror})."
        )
    return f"There is no {where}: {printable(str(parent))} holds no {printable(wrong)!r}.{printable(near)}"


def _nothing_in(path: Path, where: str) -> str:
    """What to say of a folder without images: what it holds instead."""
    suffixes: Counter[str] = Counter()
    for _, folders, files in os.walk(path):
        folders[:] = [name for name in folders if not name.startswith(".")]
        suffixes.update(
            Path(name).suffix.lower() or "no suffix" for name in files if not name.startswith(".")
        )
        if suffixes.total() > 100_000:
            break
    wanted = "expected pictures (.jpg, .png, .webp, .bmp, .tif, .gif) or parquet files, at any depth."
    if not suffixes:
        return f"{where} holds no files; {wanted}"
    seen = ", ".join(
        f"{count:,} with {printable(suffix)}" for suffix, count in sorted(suffixes.most_common(4))
    )
    advice = " Give the array's file itself." if {".npy", ".npz"} & set(suffixes) else ""
    return f"{where} holds no pictures, only other files ({seen}); {wanted}{advice}"

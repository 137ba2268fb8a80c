"""`open_images`: folders, lists, parquet, arrays, datasets; whatever they are, they become one kind of thing, `Images`."""

import glob
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from byol.data.arrays import Arrays, array_file, to_numpy
from byol.data.decode import MAX_PIXELS
from byol.data.folder import SUFFIXES, FileReader, listed, scan
from byol.data.images import Encoded, Source
from byol.data.images import Images as Images
from byol.data.items import Items
from byol.data.labels import class_labels
from byol.data.parquet import SPLITS, ParquetReader, shards
from byol.data.spread import spread
from byol.errors import DataError, did_you_mean


def open_images(source: Any, *, channels: int | None = None, labels: Any = None, max_pixels: int = MAX_PIXELS) -> Images:
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
        raise DataError(f"These images were opened with {images.channels} channels and {channels} are needed: open them so.")
    if labels is None:
        return images
    if images._rows is not None:
        raise DataError("Labels were given for a subset of images. Give them for all images, then take the subset.")
    given = class_labels(labels, len(images))
    if given is None:
        raise DataError("The labels hold negative numbers; expected the numbers of classes, from 0.")
    return Images(images._source, labels=given)


def _source(source: Any, channels: int | None, max_pixels: int) -> Source:
    if isinstance(source, str | os.PathLike):
        return _path_source(os.fsdecode(source), channels, max_pixels)
    if isinstance(source, Tensor):
        return Arrays(to_numpy(source), "the tensor", channels, tensor=True)
    if isinstance(source, np.ndarray) and source.ndim == 1 and all(isinstance(item, str | os.PathLike) for item in source):
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
        raise DataError(f"{where} is a single picture; expected many. Give its folder, or [path] as a list of one.")
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
        raise DataError(f"{where} holds the splits {names}, not classes. Give one of them, such as {where}{min(classes)}.")
    return source


def _files_source(names: list[str], where: str, channels: int | None, max_pixels: int) -> Source:
    """Files by their names, relative to the folder the program runs in: all parquet, or all pictures."""
    parquet = [name.lower().endswith(".parquet") for name in names]
    if all(parquet):
        return _checked(Encoded(ParquetReader([Path(name) for name in names]), where, channels, max_pixels))
    if any(parquet):
        raise DataError(f"{where} mixes parquet files and others. Give only parquet files, or only pictures.")
    return _checked(Encoded(FileReader(Path.cwd(), [os.fsencode(name) for name in names]), where, channels, max_pixels))


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
        return f"{where} cannot be looked for: {printable(str(parent))} cannot be listed ({failure.strerror})."
    return f"There is no {where}: {printable(str(parent))} holds no {printable(wrong)!r}.{printable(near)}"


def _nothing_in(path: Path, where: str) -> str:
    """What to say of a folder without images: what it holds instead."""
    suffixes: Counter[str] = Counter()
    for _, folders, files in os.walk(path):
        folders[:] = [name for name in folders if not name.startswith(".")]
        suffixes.update(Path(name).suffix.lower() or "no suffix" for name in files if not name.startswith("."))
        if suffixes.total() > 100_000:
            break
    wanted = "expected pictures (.jpg, .png, .webp, .bmp, .tif, .gif) or parquet files, at any depth."
    if not suffixes:
        return f"{where} holds no files; {wanted}"
    seen = ", ".join(f"{count:,} with {printable(suffix)}" for suffix, count in sorted(suffixes.most_common(4)))
    advice = " Give the array's file itself." if {".npy", ".npz"} & set(suffixes) else ""
    return f"{where} holds no pictures, only other files ({seen}); {wanted}{advice}"


def printable(name: str) -> str:
    """A file's name as any terminal can show it: bytes that are no UTF-8, and line ends, are escaped."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in name)

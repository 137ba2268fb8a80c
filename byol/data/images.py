"""`Images`: what every source of pictures becomes, and all the rest of the program knows of them."""

import glob
import logging
import os
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from hashlib import blake2b
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor

from byol.data.decode import (
    FULL,
    BadImage,
    Levels,
    Pixels,
    Reading,
    channels_of,
    levels_of,
    pixels_of,
    to_numpy,
)
from byol.data.labels import class_labels
from byol.data.readers import archives
from byol.data.readers.archives import ArchiveReader, Disk
from byol.data.readers.arrays import Arrays, array_file
from byol.data.readers.dataset import Items
from byol.data.readers.folder import SUFFIXES, FileReader, listed, scan, suffixes
from byol.data.readers.parquet import SPLITS, ParquetReader, shards, to_train_on
from byol.data.readers.reader import Reader, Selection, evenly_spaced
from byol.data.readers.remote import Remote, archives_at
from byol.data.readers.shrunk import Shrunk
from byol.data.readers.table import DELIMITERS, TableReader
from byol.data.windows import Windows
from byol.disk import from_home
from byol.errors import DataError, did_you_mean, printable

COLOURS = 16  # images that are looked at to tell gray ones
NEARLY_GRAY = 4.0  # mean difference of the largest and the smallest channel, of 255
logger = logging.getLogger("byol")


class Images(Selection):
    """A set of images, read one by one. `open_images` makes them."""

    def __init__(self, reader: Reader, reading: Reading) -> None:
        super().__init__(reader)
        self.reading = reading

    def __getitem__(self, index: int | slice) -> Any:
        """An image to look at, as a PIL image: of many channels the first three. Of a slice, a subset."""
        places = range(len(self))[index]
        if isinstance(places, range):
            return self.subset(places)
        pixels = self.array(places)
        shown = pixels[:, :, :3] if pixels.shape[2] > 2 else pixels[:, :, 0]
        return Image.fromarray(np.ascontiguousarray(shown))

    def __repr__(self) -> str:
        return f"<{self.description}>"

    def _repr_png_(self) -> bytes:
        """Some of the images side by side, for notebooks."""
        page, stream = Image.new("RGB", (10 * 72, 72), "white"), BytesIO()
        for place, index in enumerate(evenly_spaced(len(self), 10)):
            with suppress(BadImage):
                page.paste(ImageOps.contain(self[index].convert("RGB"), (64, 64)), (place * 72 + 4, 4))
        page.save(stream, "PNG")
        return stream.getvalue()

    def name(self, index: int) -> str:
        """A file's path from the folder it was found in, `file.parquet:row`, or an array's row."""
        return self.reader.name(self._row(index))

    def picture(self, index: int) -> Image.Image | Pixels:
        """One image: a PIL image (mode RGB or L), or of an array uint8 (H, W, C). Raises BadImage."""
        return self.reading.picture(self.reader.read(self._row(index)))

    def array(self, index: int) -> Pixels:
        """One image as uint8 (H, W, C), a copy. Raises BadImage."""
        return pixels_of(self.picture(index))

    @property
    def channels(self) -> int:
        return self.reading.channels

    def with_classes(self, classes: tuple[str, ...]) -> "Images":
        """The same images with their labels numbered by other names, which hold all of theirs."""
        return self if self._labels is None else self._with(_labels=self._labels.renumbered(classes))

    def with_levels(self, levels: Levels | None) -> "Images":
        """The same images read with this black and white, unless others were chosen on opening them."""
        if levels is None or self.reading.levels is None or self.reading.chosen:
            return self
        return self._with(reading=replace(self.reading, levels=levels))

    def uniform_size(self) -> tuple[int, int] | None:
        """Height and width when all of a sample share them, else None; of files the headers are read."""
        sizes = set()
        for row in self.rows[self.reader.sample(self.rows)].tolist():
            with suppress(BadImage):
                sizes.add(self.reading.size(self.reader.read(row)))
            if len(sizes) > 1:
                break
        self.release()
        return sizes.pop() if len(sizes) == 1 else None

    def windows(self) -> Windows | None:
        """What a shuffled order should keep together; None where every order is read equally fast."""
        return self.reader.windows(self.rows)

    def gray_share(self) -> float:
        """The share of gray images in a sample: all three channels are the same, or nearly so."""
        if self.channels != 3:
            return float(self.channels == 1)
        places, gray = self.reader.sample(self.rows), []
        for row in self.rows[places[:: -(-len(places) // COLOURS)]].tolist():
            with suppress(BadImage):
                pixels = self.reading.picture(self.reader.read(row))
                gray.append(float(np.ptp(np.asarray(pixels), axis=2).mean()) < NEARLY_GRAY)
        self.release()
        return sum(gray) / max(1, len(gray))

    def shrunk(self, side: int, threads: int, poll: Callable[[], object]) -> "Images":
        """The same, decoded now and kept in memory, the shorter side of each at most `side` pixels."""
        return Images(
            Shrunk(self.reader, self.rows, self.reading, side, threads, poll), Reading(self.channels)
        )

    def fingerprint(self) -> str:
        """A hexadecimal digest that changes with the images: their names, or a sample of what they hold."""
        digest = blake2b(self.reader.digest(everything=False) or b"", digest_size=16)
        if not self._whole:
            digest.update(self.rows.tobytes())
        if self.reading.levels not in (None, FULL):
            digest.update(str(self.reading.levels).encode())
        return digest.hexdigest()

    def checksum(self) -> str | None:
        """As `fingerprint`, of every byte and of how they are read; None where nobody can tell."""
        held, how = self.reader.digest(everything=True), repr(self.reading).encode()
        return None if held is None else self.fingerprint() + blake2b(how + held, digest_size=16).hexdigest()

    @property
    def description(self) -> str:
        """For people: "1,234 images in photos/ (5 classes)"."""
        count = f"{len(self):,}" if self._whole else f"{len(self):,} of {len(self.reader):,}"
        notes = []
        if ("_labels" in vars(self) or not self.reader.labels_cost_decoding) and self.classes:
            notes.append("1 class" if len(self.classes) == 1 else f"{len(self.classes)} classes")
        if self.reading.levels:
            notes.append("{:,g} is black, {:,g} white".format(*self.reading.levels))
        noted = f" ({', '.join(notes)})" if notes else ""
        return f"{count} {'image' if count == '1' else 'images'} in {self.reader.where}{noted}"

    @property
    def _whole(self) -> bool:
        return len(self) == len(self.reader) and bool((self.rows == np.arange(len(self))).all())

    def _row(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        return int(self.rows[index])


def open_images(
    source: Any,
    *,
    channels: int | None = None,
    labels: Any = None,
    max_pixels: int | None = None,
    min_side: int | None = None,
    truncated: bool | None = None,
    black: float | None = None,
    white: float | None = None,
) -> Images:
    """Images from nearly anything.

    A folder, nested to any depth: its first level names the classes when there are several folders and no
    image beside them. A text file of paths (.txt, .lst), a table of paths and labels (.csv, .tsv), parquet
    files, .npy or .npz. Tar and zip files, as 'shards/{000..127}.tar', or a folder or a list of them, with
    labels in `.cls` as in WebDataset. A pattern such as 'data/train-*.parquet'. Arrays and tensors (N, H, W),
    (N, H, W, C) or (N, C, H, W): whole numbers, or floats from 0 to 1. Any sequence of paths, of images (PIL,
    arrays, tensors) or of (image, label), such as a torchvision or Hugging Face dataset. `Images`, which are
    then read as the other arguments say.

    `channels` is 3 for colour or 1 for gray, for arrays any number; by default 3 for pictures and an array's
    own. `labels`, numbers from 0 or words, take the place of the source's own; of multi-label images rows of
    0 and 1, a column a class. Larger pictures than `max_pixels` (62 million) count as unreadable, as do those
    with a side below `min_side` (1) and those that are cut off, unless `truncated`: then gray stands for what
    is missing. `black` and `white` are for samples of more than 8 bits; by default the fewest bits that hold
    a sample of the images decide, and floats go from 0 to 1. Raises DataError.
    """
    for name, number in (("channels", channels), ("max_pixels", max_pixels), ("min_side", min_side)):
        if number is not None and number < 1:
            raise DataError(f"{name} is {number}; expected at least 1.")
    images = source if isinstance(source, Images) else Images(reader_of(source), Reading(channels=0))
    limits: dict[str, Any] = {"max_pixels": max_pixels, "min_side": min_side, "truncated": truncated}
    limits = {name: value for name, value in limits.items() if value is not None}
    requested = channels if channels != images.channels else None, black, white
    if images is not source or limits or requested != (None, None, None):
        if len(images) == 0:
            raise DataError(f"There is no image in {images.reader.where}; expected at least one.")
        images = images._with(reading=reading_of(images, replace(images.reading, **limits), *requested))
    if labels is None:
        return images
    found = class_labels(labels, len(images))
    if found is None:
        raise DataError("The labels hold negative numbers; expected the numbers of classes, from 0.")
    return images._with(_labels=found)


def reading_of(
    images: Images, before: Reading, channels: int | None, black: float | None, white: float | None
) -> Reading:
    """How to read images: as requested, as before, or by a sample. Raises DataError when none can be read."""
    reader, reading = images.reader, before
    sample = images.rows[reader.sample(images.rows)].tolist()
    ends = []  # of every image of more than 8 bits the smallest and the largest sample
    for index in sample:
        with suppress(BadImage):
            raw = reader.read(index)
            channels = channels or before.channels or channels_of(raw)
            if (found := reading.extremes(raw)) is not None:
                ends.append(found)
    reading = replace(reading, channels=channels or 3)
    chosen = (black, white) != (None, None)
    if chosen or not before.channels:
        reading = replace(reading, levels=levels_of(reader.where, ends, black, white), chosen=chosen)
    told = ""
    for index in sample:
        try:
            reading.picture(reader.read(index))
            reader.release()
            return reading
        except BadImage as failure:
            name = os.fsdecode(reader.path(index)) if isinstance(reader, FileReader) else reader.name(index)
            told = told or f"The first, {printable(name)}: {failure}."
    raise DataError(f"No image in {reader.where} can be read. {told}")


def reader_of(source: Any) -> Reader:
    """The reader of a source."""
    if isinstance(source, str | os.PathLike):
        return reader_of_path(os.fsdecode(source))
    if isinstance(source, Tensor):
        return Arrays(to_numpy(source), "the tensor", tensor=True)
    kind, array = type(source).__name__, isinstance(source, np.ndarray)
    where = {"ndarray": "the array", "list": "the list", "tuple": "the tuple"}.get(kind, kind)
    # An array of paths is what scikit-learn cuts lists into.
    many = isinstance(source, list | tuple) or (array and source.ndim == 1)
    if many and len(source) and all(isinstance(item, str | os.PathLike) for item in source):
        return reader_of_files([os.fsdecode(item) for item in source], where)
    if array:
        return Arrays(source, where)
    if isinstance(source, Mapping):
        keys = ", ".join(map(str, source)) or "none"
        raise DataError(f"A mapping (keys: {keys}) is not a set of images. Give one of its values.")
    if isinstance(source, bytes) or not hasattr(source, "__len__") or not hasattr(source, "__getitem__"):
        raise DataError(
            f"An object of type {kind} is not a set of images; expected a path, an array or tensor, or a "
            "sequence with a length and items. Of a data loader, give its dataset."
        )
    return Items(source, where)


def reader_of_path(text: str) -> Reader:
    """The reader of what is at a path, chosen for a file by its suffix."""
    if not text:
        raise DataError("The path of the images is empty; expected a folder or a file of images.")
    if "://" in text and not os.path.exists(text):
        return reader_of_urls([text], printable(text))
    path, where = from_home(text), printable(text)
    suffix = path.suffix.lower()
    if os.path.isdir(path):
        return reader_of_folder(path, f"{where.rstrip('/')}/")
    if not os.path.exists(path):
        if glob.has_magic(text) and (found := sorted(glob.glob(str(path), recursive=True))):
            return reader_of_files(files_among(found, path.suffix, where), where)
        if (names := archives.expanded(str(path))) != [str(path)]:
            absent = [name for name in names if not os.path.isfile(name)]
            if not absent:
                return reader_of_files(names, where)
            raise DataError(
                f"{where} stands for {len(names):,} files, of which {len(absent):,} are not there, such as "
                f"{printable(absent[0])}. Copy them, or name those that are."
            )
        raise DataError(missing(path, where))
    if not os.path.isfile(path):  # a pipe would be waited for
        raise DataError(f"{where} is not a regular file; expected a folder or a file of images.")
    if suffix in (".txt", ".lst"):
        files = listed(path, where)
        first = files.name(0) if len(files) else ""
        if "://" in first or kind_of(first) != "pictures":  # a list of shards
            each = ((files.name(place), files.path(place)) for place in range(len(files)))
            return reader_of_files([name if "://" in name else os.fsdecode(at) for name, at in each], where)
        return files
    if suffix in DELIMITERS:
        return TableReader(path, where)
    if suffix == ".parquet" or suffix in archives.SUFFIXES:
        return reader_of_files([str(path)], where)
    if suffix in (".npy", ".npz"):
        return array_file(path, where)
    if suffix in SUFFIXES:
        raise DataError(f"{where} is a single picture; expected many. Give its folder, or [path] as a list.")
    raise DataError(
        f"{where} is not of a kind that is read here; expected a folder, a text file of paths (.txt, .lst), "
        "a table of paths and labels (.csv, .tsv), .parquet, .tar, .zip, .npy or .npz. Unpack other archives "
        "first."
    )


def reader_of_folder(path: Path, where: str) -> Reader:
    """The reader of the pictures in a folder, or else of its parquet files, or of its archives."""
    files, others, links = scan(path, where)
    seen = passed_over(others)
    if len(files) == 0:
        for ending in ((".parquet",), archives.SUFFIXES):
            if found := shards(path, ending):
                return reader_of_files([str(one) for one in found], where)
        held = f"pictures, only other files ({seen})" if seen else "files"
        expected = f"pictures ({', '.join(suffixes())}), parquet or tar files, at any depth."
        advice = " Give the array's file itself." if {".npy", ".npz"} & set(others) else ""
        raise DataError(f"{where} holds no {held}; expected {expected}{advice}")
    if seen:
        logger.warning(f"Passed over in {where}: {seen}.")
    if links:
        such = f"such as {printable(os.fsdecode(links[0]))}"
        logger.warning(f"Passed over in {where}: {len(links):,} links to what counts already, {such}.")
    labels = files.labels(np.arange(0))
    if labels and {name.lower() for name in labels.classes} <= SPLITS:
        splits, one = ", ".join(labels.classes), to_train_on(labels.classes)
        raise DataError(f"{where} holds the splits {splits}, not classes. Give one, such as {where}{one}.")
    return files


def passed_over(others: Counter[str]) -> str:
    """What to say of files that are no pictures by their suffixes, and of what would read them."""
    seen = ", ".join(f"{count:,} with {suffix}" for suffix, count in sorted(others.most_common(4)))
    for suffix, plugin in ((".heic", "pillow-heif"), (".jxl", "pillow-jxl-plugin")):
        if suffix in others:
            seen += f"; to read {suffix}: pip install {plugin}"
    return seen


def files_among(found: list[str], suffix: str, where: str) -> list[str]:
    """What counts of all that a pattern matches: no folders and, where it names no suffix, known kinds."""
    files = [name for name in found if not os.path.isdir(name)]
    if not files:
        raise DataError(
            f"{where} matches only folders, such as {printable(found[0])}; expected files. Give the folder "
            "that holds them, or a pattern of the files in them, which may end in /**."
        )
    known = {*suffixes(), ".parquet", *archives.SUFFIXES}
    kinds = [os.path.splitext(name)[1].lower() for name in files]
    if suffix.strip(".*?") or not known & set(kinds):  # names without suffix may be pictures too
        return files
    if others := Counter(printable(kind) or "no suffix" for kind in kinds if kind not in known):
        logger.warning(f"Passed over in {where}: {passed_over(others)}.")
    return [name for name, kind in zip(files, kinds, strict=True) if kind in known]


def reader_of_files(names: list[str], where: str) -> Reader:
    """The reader of files, all parquet, all archives or all pictures, named from the working directory."""
    if any("://" in name and not os.path.exists(name) for name in names):
        return reader_of_urls(names, where)
    kinds = sorted({kind_of(name) for name in names})
    if len(kinds) > 1:
        raise DataError(f"{where} mixes {' and '.join(kinds)}. Give only one kind.")
    if kinds == ["pictures"]:
        return FileReader(Path.cwd(), map(os.fsencode, names), where)
    if kinds == ["parquet files"]:
        return ParquetReader([Path(name) for name in names], where)
    return ArchiveReader(Disk(names), where)


def reader_of_urls(urls: list[str], where: str) -> Reader:
    """The reader of archives in object storage or on a web server."""
    expanded = [one for url in urls for one in archives.expanded(url)]
    found = [one for url in expanded for one in archives_at(url, archives.SUFFIXES)]
    return ArchiveReader(Remote(found), where)


def kind_of(name: str) -> str:
    """What is read in a file of such a name."""
    suffix = os.path.splitext(name)[1].lower()
    return {".parquet": "parquet files", **dict.fromkeys(archives.SUFFIXES, "archives")}.get(
        suffix, "pictures"
    )


def missing(path: Path, where: str) -> str:
    """What to say of a path that leads nowhere: up to where it is right, and what is similar there."""
    wrong = path.absolute()
    while not os.path.isdir(wrong.parent) and wrong != wrong.parent:
        wrong = wrong.parent
    parent = printable(str(wrong.parent))
    try:
        near = printable(did_you_mean(wrong.name, os.listdir(wrong.parent)[:10_000]))
    except OSError as failure:
        return f"{where} cannot be looked for: {parent} cannot be listed ({failure.strerror})."
    return f"There is no {where}: {parent} holds no {printable(wrong.name)!r}.{near}"

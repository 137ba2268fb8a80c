"""Pictures in tar and zip files, such as the shards of WebDataset, read where they lie."""

import logging
import os
import re
from bisect import bisect_right
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from hashlib import blake2b
from io import FileIO
from itertools import accumulate, product
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from byol.data.decode import BadImage
from byol.data.labels import Labels, found_labels
from byol.data.readers.archive_index import (
    Index,
    Member,
    content,
    identity_of,
    index_of,
    read_at,
)
from byol.data.readers.folder import HASHED, MAX_BYTES, checksum, regular_file, size_of
from byol.data.readers.reader import Reader, Rows, lengths_of, names_of
from byol.data.windows import Windows
from byol.disk import read_json
from byol.errors import DataError, printable

SUFFIXES = (".tar", ".zip")
PACKED = "byol-pack.json"  # what `byol pack` says of a folder of shards
OPEN = 64  # files at once
MOST = 10**6  # archives
NUMBER = re.compile("[0-9]{1,18}")  # of a class
logger = logging.getLogger("byol")


class Storage(Protocol):
    """Where archives lie. All of it goes by an archive's place among them."""

    places: list[Any]  # paths or URLs
    names: list[str]  # for people, each once

    def index(self, place: int) -> tuple[Index, str]:
        """And why there was one that is not good any more, else "". Raises DataError."""

    def beside(self, place: int, name: str) -> Any:
        """What a JSON file beside an archive holds. Raises OSError without one, and ValueError."""

    def read(self, place: int, member: Member) -> bytes:
        """A picture. Raises BadImage, and DataError when all of the storage is gone."""

    def expect(self, wanted: list[tuple[int, Member]]) -> None:
        """Begin to read what will be requested next."""

    def version(self, place: int) -> dict[str, Any]:
        """What tells an archive from others, wherever it lies."""

    def checksum(self, everything: bool) -> bytes | None:
        """Of every byte, or of what costs little; None where nobody can tell."""

    def release(self) -> None: ...


class Disk:
    """Archives in files. The index of each is made once and kept beside it."""

    def __init__(self, paths: Sequence[Path | str]) -> None:
        self.places = [Path(os.path.abspath(path)) for path in paths]
        self.names = names_of(self.places)
        self._open: OrderedDict[int, FileIO] = OrderedDict()

    def __del__(self) -> None:
        self.release()

    def index(self, place: int) -> tuple[Index, str]:
        return index_of(self.places[place])

    def beside(self, place: int, name: str) -> Any:
        return read_json(self.places[place].parent / name)

    def read(self, place: int, member: Member) -> bytes:
        try:
            return content(partial(read_at, self._file(place)), member, MAX_BYTES)
        except (OSError, ValueError) as failure:
            raise BadImage(getattr(failure, "strerror", None) or str(failure)) from failure

    def expect(self, wanted: list[tuple[int, Member]]) -> None:
        """Have the operating system read ahead."""
        if hasattr(os, "posix_fadvise"):
            for place, member in wanted:
                try:
                    descriptor = self._file(place).fileno()
                    os.posix_fadvise(descriptor, member.offset, member.size, os.POSIX_FADV_WILLNEED)
                except OSError:
                    return  # reading it will say why

    def version(self, place: int) -> dict[str, Any]:
        with regular_file(self.places[place]) as file:
            return identity_of(file) | {"written": 0}

    def checksum(self, everything: bool) -> bytes:
        few = sum(map(size_of, self.places)) <= HASHED
        return checksum(self.places) if everything or few else b""

    def release(self) -> None:
        """Close the files."""
        while self._open:
            self._open.popitem()[1].close()

    def _file(self, place: int) -> FileIO:
        """An open archive. A forked process may share it: nothing moves its position."""
        if place not in self._open:
            if len(self._open) >= OPEN:
                self._open.popitem(last=False)[1].close()
            self._open[place] = FileIO(os.open(self.places[place], os.O_RDONLY | os.O_NONBLOCK))
        self._open.move_to_end(place)
        return self._open[place]


class ArchiveReader(Reader):
    """Samples of one or more archives, in their order."""

    def __init__(self, storage: Storage, where: str = "") -> None:
        self.where, self.storage = where, storage
        folders = [os.path.dirname(place) for place in storage.places]
        some = {folder: place for place, folder in enumerate(folders)}  # an archive of each
        by_folder = {folder: packed(storage, place) for folder, place in some.items()}
        # By their numbers, as `byol pack` wrote them: of each archive; none where it has not been.
        self.names_of_classes = [by_folder[folder] for folder in folders]
        with ThreadPoolExecutor(16) as threads:
            found = list(threads.map(storage.index, range(len(storage.places))))
        self.indexes: list[Index] = [index for index, _ in found]
        self.starts = [0, *accumulate(len(index.rows) for index in self.indexes)]  # and the total
        again = [one for one in zip(storage.places, (why for _, why in found), strict=True) if one[1]]
        if again:
            path, why = again[0]
            more = f", as were {len(again) - 1:,} others" if len(again) > 1 else ""
            logger.warning(f"{path} {why}: it was indexed anew{more}.")
        passed_over = sum((Counter(index.passed_over) for index in self.indexes), Counter[str]())
        if passed_over:
            told = ", ".join(f"{count:,} {kind}" for kind, count in passed_over.most_common(4))
            logger.warning(f"Passed over in {where}: {told}.")
        if self.starts[-1] == 0:
            raise DataError(f"{where} holds no pictures; expected members such as 0001.jpg.")

    def __reduce__(self) -> tuple[Any, ...]:
        return reopened, (type(self.storage), self.storage.places, self.where)

    def __len__(self) -> int:
        return self.starts[-1]

    def name(self, index: int) -> str:
        place = bisect_right(self.starts, index) - 1
        name = os.fsdecode(self.indexes[place].name(index - self.starts[place]))
        return f"{self.storage.names[place]}:{name}"

    def read(self, index: int) -> bytes:
        return self.storage.read(*self._member(index))

    def expect(self, rows: Rows) -> None:
        self.storage.expect([self._member(row) for row in rows.tolist()])

    def windows(self, rows: Rows) -> Windows | None:
        lengths = lengths_of(np.searchsorted(self.starts, rows, side="right"))
        return None if lengths is None else Windows(lengths)

    @cached_property
    def all_labels(self) -> Labels | None:
        """Of the .cls members: whole numbers, named by themselves or as `byol pack` wrote, or words."""
        places = np.concatenate([index.rows["label"].astype(np.int64) for index in self.indexes])
        if (missing := int((places < 0).sum())) == len(places):
            return None
        if missing:
            told = f"{missing:,} of {len(places):,} have no .cls member beside them"
            logger.warning(f"The images in {self.where} count as unlabelled: {told}.")
            return None
        names, several = max(self.names_of_classes, key=len), len({*self.names_of_classes}) > 1
        said = [index.classes for index in self.indexes]
        if several:  # packed apart: in each a number means another class
            said = [
                tuple(own[int(w)] if NUMBER.fullmatch(w) and int(w) < len(own) else w for w in those)
                for own, those in zip(self.names_of_classes, said, strict=True)
            ]
        words = sorted({word for those in said for word in those})
        numbers = all(NUMBER.fullmatch(word) for word in words)
        value = {word: int(word) if numbers else number for number, word in enumerate(words)}
        values = np.concatenate(
            [
                np.array([value[word] for word in those], dtype=np.int64)[index.rows["label"]]
                for index, those in zip(self.indexes, said, strict=True)  # of which some may hold no picture
            ]
        )
        return found_labels(values, len(self), (() if several else names) if numbers else words)

    def digest(self, everything: bool) -> bytes | None:
        held = self.storage.checksum(everything)
        if held is None:
            return None
        digest = blake2b(held)
        for place, index in enumerate(self.indexes):
            # Without its folders: a fingerprint stays what it is when shards are moved.
            told = f"{os.path.basename(self.storage.names[place])} {self.storage.version(place)}"
            digest.update(told.encode("utf-8", "replace"))
            digest.update(index.rows.tobytes() + index.names)
        return digest.digest()

    def release(self) -> None:
        self.storage.release()

    def _member(self, index: int) -> tuple[int, Member]:
        place = bisect_right(self.starts, index) - 1
        row = self.indexes[place].rows[index - self.starts[place]]
        return place, Member(b"", int(row["offset"]), int(row["size"]), bool(row["packed"]))


def reopened(kind: Callable[[Any], Storage], places: list[Any], where: str) -> ArchiveReader:
    """A reader of the same archives in another process."""
    return ArchiveReader(kind(places), where)


def packed(storage: Storage, place: int) -> tuple[str, ...]:
    """The names of classes that `byol pack` has written beside an archive, nothing where it has not been.

    Raises DataError when it is unfinished.
    """
    folder = os.path.dirname(storage.places[place])
    try:
        told = storage.beside(place, PACKED)
    except FileNotFoundError:
        return ()
    except (OSError, ValueError) as failure:
        raise DataError(f"{folder}/{PACKED} cannot be read ({failure}). Pack the images again.") from failure
    if not isinstance(told, dict) or not told.get("finished"):
        raise DataError(f"{folder} is not finished: repeat the `byol pack` that writes it.")
    names = told.get("classes")
    return tuple(map(str, names)) if isinstance(names, list) else ()


def expanded(pattern: str) -> list[str]:
    """The paths of a pattern with braces: {000..127} counts, {a,b} lists. Raises DataError for too many."""
    parts: list[list[str]] = []
    for text in re.split(r"(\{[^{}]*\})", pattern):
        if found := re.fullmatch(r"\{(\d+)\.\.(\d+)\}", text):
            first, last = found.groups()
            numbers = range(int(first), min(int(last), int(first) + MOST) + 1)
            parts.append([f"{number:0{len(first)}d}" for number in numbers])
        else:
            parts.append(text[1:-1].split(",") if text.startswith("{") else [text])
    if (count := np.prod([float(len(part)) for part in parts])) > MOST:
        raise DataError(f"{printable(pattern)} stands for {count:,.0f} paths; expected at most {MOST:,}.")
    return ["".join(words) for words in product(*parts)]

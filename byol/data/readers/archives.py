"""Pictures in tar and zip files, such as the shards of WebDataset, read where they lie."""

import logging
import os
import re
from bisect import bisect_right
from collections import Counter, OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from hashlib import blake2b
from io import FileIO
from itertools import accumulate, product
from pathlib import Path
from typing import Any

import numpy as np

from byol.data.decode import BadImage
from byol.data.labels import Labels, found_labels
from byol.data.readers.archive_index import Index, Member, content, identity_of, index_of
from byol.data.readers.folder import HASHED, MAX_BYTES, checksum, regular_file, size_of
from byol.data.readers.reader import Reader, Rows, lengths_of
from byol.data.windows import Windows
from byol.disk import read_json
from byol.errors import DataError, printable

SUFFIXES = (".tar", ".zip")
PACKED = "byol-pack.json"  # what `byol pack` says of a folder of shards
OPEN = 64  # files at once
MOST = 10**6  # archives
logger = logging.getLogger("byol")


class ArchiveReader(Reader):
    """Samples of one or more archives, in their order. The index of each is made once and kept beside it."""

    def __init__(self, paths: Sequence[Path], where: str = "") -> None:
        self.where, self.paths = where, [Path(os.path.abspath(path)) for path in paths]
        self.packed = packed(self.paths[0].parent)
        with ThreadPoolExecutor(16) as threads:
            found = list(threads.map(index_of, self.paths))
        self.indexes: list[Index] = [index for index, _ in found]
        self.starts = [0, *accumulate(len(index.rows) for index in self.indexes)]  # and the total
        self._open: OrderedDict[int, FileIO] = OrderedDict()
        again = [one for one in zip(self.paths, (why for _, why in found), strict=True) if one[1]]
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
        return ArchiveReader, (self.paths, self.where)

    def __del__(self) -> None:
        if hasattr(self, "_open"):
            self.release()

    def __len__(self) -> int:
        return self.starts[-1]

    def name(self, index: int) -> str:
        place = bisect_right(self.starts, index) - 1
        return f"{self.paths[place].name}:{os.fsdecode(self.indexes[place].name(index - self.starts[place]))}"

    def read(self, index: int) -> bytes:
        place, member = self._member(index)
        try:
            return content(self._file(place), member, MAX_BYTES)
        except (OSError, ValueError) as failure:
            raise BadImage(getattr(failure, "strerror", None) or str(failure)) from failure

    def expect(self, rows: Rows) -> None:
        """Have the operating system read ahead."""
        if hasattr(os, "posix_fadvise"):
            for row in rows.tolist():
                place, member = self._member(row)
                try:
                    descriptor = self._file(place).fileno()
                    os.posix_fadvise(descriptor, member.offset, member.size, os.POSIX_FADV_WILLNEED)
                except (OSError, BadImage):
                    return  # reading it will say why

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
        words = sorted({word for index in self.indexes for word in index.classes})
        numbers = all(re.fullmatch("[0-9]{1,18}", word) for word in words)
        value = {word: int(word) if numbers else number for number, word in enumerate(words)}
        values = np.concatenate(
            [np.array([value[w] for w in index.classes])[index.rows["label"]] for index in self.indexes]
        )
        return found_labels(values, len(self), self.packed.get("classes") if numbers else words)

    def digest(self, everything: bool) -> bytes:
        few = sum(map(size_of, self.paths)) <= HASHED
        digest = blake2b(checksum(self.paths) if everything or few else b"")
        for path, index in zip(self.paths, self.indexes, strict=True):
            with regular_file(path) as file:
                digest.update(f"{path.name} {identity_of(file) | {'written': 0}}".encode("utf-8", "replace"))
            digest.update(index.rows.tobytes() + index.names)
        return digest.digest()

    def release(self) -> None:
        """Close the files."""
        while self._open:
            self._open.popitem()[1].close()

    def _member(self, index: int) -> tuple[int, Member]:
        place = bisect_right(self.starts, index) - 1
        row = self.indexes[place].rows[index - self.starts[place]]
        return place, Member(b"", int(row["offset"]), int(row["size"]), bool(row["packed"]))

    def _file(self, place: int) -> FileIO:
        """An open archive. A forked process may share it: nothing moves its position."""
        if place not in self._open:
            if len(self._open) >= OPEN:
                self._open.popitem(last=False)[1].close()
            self._open[place] = FileIO(os.open(self.paths[place], os.O_RDONLY | os.O_NONBLOCK))
        self._open.move_to_end(place)
        return self._open[place]


def packed(folder: Path) -> dict[str, Any]:
    """What `byol pack` says of a folder, nothing where it has not been. Raises DataError when unfinished."""
    try:
        told = read_json(folder / PACKED)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as failure:
        raise DataError(f"{folder / PACKED} cannot be read ({failure}). Pack the images again.") from failure
    if not isinstance(told, dict) or not told.get("finished"):
        raise DataError(f"{folder} is not finished: repeat the `byol pack` that writes it.")
    return told


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

"""Image files in a folder or in a list: scanned once, held in a few bytes each."""

import hashlib
import logging
import os
import stat
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from hashlib import blake2b
from io import BufferedReader
from pathlib import Path

import numpy as np

from byol.data.decode import BadImage, formats
from byol.data.labels import Labels
from byol.data.readers.reader import Reader, evenly_spaced
from byol.errors import DataError, printable

SUFFIXES = {  # and the formats they promise; .mpo is a JPEG with a second frame, as phones write
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"), "JPEG"),
    **dict.fromkeys((".png", ".apng"), "PNG"),
    **{".webp": "WEBP", ".bmp": "BMP", ".tif": "TIFF", ".tiff": "TIFF", ".gif": "GIF", ".avif": "AVIF"},
    **{".heic": "HEIF", ".heif": "HEIF", ".hif": "HEIF", ".jxl": "JXL"},
}
GROUP = 64  # files that a thread reads before it takes others
SIZES = 20_000  # files whose sizes are part of the fingerprint, and of a few the contents
HASHED = 2**28  # bytes: if all files together are no larger, the contents of all are part of it
MAX_BYTES = 2**30  # of one encoded picture; to read a larger file could exhaust the memory
logger = logging.getLogger("byol")


class FileReader(Reader):
    """Files under a root, by their relative paths in one buffer: as Python objects each took 100 bytes more.

    With `folders` the first folder level names the classes.
    """

    def __init__(self, root: Path, names: Iterable[bytes], where: str = "", *, folders: bool = False) -> None:
        self.root, self.where, self.folders = os.fsencode(root), where, folders
        buffer, ends = bytearray(), array("Q")
        for name in names:
            buffer += name
            ends.append(len(buffer))
        self._names, self._ends = bytes(buffer), np.array(ends, dtype=np.uint64)

    def __len__(self) -> int:
        return len(self._ends)

    def raw_name(self, index: int) -> bytes:
        return self._names[int(self._ends[index - 1]) if index else 0 : int(self._ends[index])]

    def name(self, index: int) -> str:
        return os.fsdecode(self.raw_name(index))

    def path(self, index: int) -> bytes:
        return os.path.join(self.root, self.raw_name(index))

    def read(self, index: int) -> bytes:
        return read_file(self.path(index))

    def digest(self, everything: bool) -> bytes:
        sizes = [size_of(self.path(index)) for index in evenly_spaced(len(self), SIZES)]
        few = len(sizes) == len(self) and sum(sizes) <= HASHED
        indices = range(len(self)) if everything or few else evenly_spaced(len(self))
        held = checksum([self.path(index) for index in indices])
        return blake2b(self._names + self._ends.tobytes() + held + repr(sizes).encode()).digest()

    @cached_property
    def all_labels(self) -> Labels | None:
        """From the first folder level, if there are several and no file without a class lies beside them."""
        if not self.folders:
            return None
        numbers: dict[bytes, int] = {}
        values, beside = array("q"), array("q")
        for index in range(len(self)):
            first, separator, _ = self.raw_name(index).partition(b"/")
            if separator:
                values.append(numbers.setdefault(first, len(numbers)))
            else:
                beside.append(index)
        if len(numbers) < 2 or beside:
            if len(numbers) > 1 and len(beside) <= len(self) / 10:
                logger.warning(
                    f"The images in {self.where} count as unlabelled: {printable(self.name(beside[0]))} lies "
                    f"beside the {len(numbers)} folders ({len(beside):,} do). If these are classes, move it."
                )
            return None
        rank = {name: number for number, name in enumerate(sorted(numbers))}  # "a-b/1" comes before "a/1"
        ranks = np.array([rank[name] for name in numbers], dtype=np.int64)
        return Labels(ranks[np.array(values)], tuple(map(os.fsdecode, rank)))


def checksum(paths: Sequence[str | bytes | Path]) -> bytes:
    """A digest of everything in some files, in their order; several threads read them.

    Of a file that cannot be read the kind of error counts; its words would tell the path.
    """

    def digest_of(path: str | bytes | Path) -> bytes:
        try:
            with regular_file(path) as file:
                return hashlib.file_digest(file, blake2b).digest()
        except (OSError, ValueError) as failure:
            return blake2b(type(failure).__name__.encode()).digest()

    def part(first: int) -> bytes:
        return b"".join(map(digest_of, paths[first : first + GROUP]))

    with ThreadPoolExecutor() as threads:
        return blake2b(b"".join(threads.map(part, range(0, len(paths), GROUP)))).digest()


def size_of(path: bytes | Path) -> int:
    """A file's length in bytes; -1 where it cannot be looked at."""
    try:
        return os.stat(path).st_size
    except (OSError, ValueError):  # ValueError: a name with a null byte
        return -1


def read_file(path: str | bytes | Path) -> bytes:
    """The bytes of a regular file. Raises BadImage; never waits on a pipe or a device."""
    try:
        with regular_file(path) as file:
            if (size := os.fstat(file.fileno()).st_size) > MAX_BYTES:
                raise BadImage(f"its {size:,} bytes are more than the limit of {MAX_BYTES:,}")
            return file.read()
    except (OSError, ValueError) as failure:  # ValueError: a name with a null byte
        raise BadImage(getattr(failure, "strerror", None) or str(failure)) from failure


def regular_file(path: str | bytes | Path) -> BufferedReader:
    """A file opened to be read. Raises BadImage for anything else; a pipe would be waited for."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise BadImage("it is not a regular file")
    return open(path, "rb")


def suffixes() -> list[str]:
    """The endings of the files that are read here as pictures."""
    return [suffix for suffix, kind in SUFFIXES.items() if kind in formats()]


def scan(root: Path, where: str = "") -> tuple[FileReader, Counter[str], list[bytes]]:
    """Every image file under a folder, to any depth, in the order of their names.

    Also the suffixes of other files, and the links that were passed over since what they lead to counts
    already. A symbolic link counts once and only when what it points to was not found otherwise; loops end by
    themselves. Of the names of one file (hard links) one counts, in every class. Hidden entries and __MACOSX
    do not count; pipes, sockets and dangling links are never opened. Raises DataError if the folder cannot be
    listed.
    """
    known = {suffix.encode() for suffix in suffixes()}

    def passed_over(name: bytes) -> bool:
        return name.startswith(b".") or name == b"__MACOSX"

    def suffix_of(name: bytes) -> bytes:
        return os.path.splitext(name)[1].lower()

    def inode(path: bytes) -> tuple[int, int]:
        state = os.stat(path)
        return state.st_dev, state.st_ino

    base = os.fsencode(root)
    names, numbers = list[bytes](), array("Q")  # of inodes, which a listing tells at no cost
    links, again, others = list[bytes](), list[bytes](), Counter[bytes]()
    folders, linked_folders, visited = [b""], list[bytes](), set[tuple[int, int]]()
    while folders or linked_folders:
        # Links are followed last, so that a file is known by its own path where it has one.
        place = folders.pop() if folders else linked_folders.pop(0)
        path = os.path.join(base, place) if place else base
        try:
            if (identity := inode(path)) in visited:
                again.append(place)
                continue
            visited.add(identity)
            with os.scandir(path) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except OSError as failure:
            said = printable(os.fsdecode(path))
            raise DataError(f"The folder {said} cannot be listed: {failure.strerror}.") from failure
        deeper = []
        for entry in entries:
            name = os.path.join(place, entry.name)
            if passed_over(entry.name):
                continue
            # os.path, unlike the entry's own methods, takes a link to itself for nothing.
            if entry.is_symlink():
                if os.path.isdir(entry.path):
                    linked_folders.append(name)
                elif os.path.isfile(entry.path) and suffix_of(name) in known:
                    links.append(name)
            elif entry.is_dir():
                deeper.append(name)
            elif entry.is_file() and suffix_of(name) in known:
                names.append(name)
                numbers.append(entry.inode())
            elif entry.is_file():
                others[suffix_of(name)] += 1
        folders += reversed(deeper)
    found = set()
    for name in links:
        folder, file = os.path.split(target := os.path.realpath(os.path.join(base, name)))
        inside = inode(folder) in visited and suffix_of(file) in known and not passed_over(file)
        if inside or target in found:
            again.append(name)
            continue
        found.add(target)
        names.append(name)
        numbers.append(inode(target)[1])
    if further := further_names(base, names, numbers):
        again += further
        names = list({*names} - {*further})
    counts = Counter({printable(os.fsdecode(suffix)) or "no suffix": n for suffix, n in others.items()})
    return FileReader(Path(os.path.abspath(root)), sorted(names), where, folders=True), counts, again


def further_names(base: bytes, names: list[bytes], numbers: "array[int]") -> list[bytes]:
    """The names of files that have another one (hard links), but for the first in each class.

    A name in another class is kept: it is somebody's word that the image is of that class too.
    """
    every = np.array(numbers, dtype=np.uint64)
    kinds, counts = np.unique(every, return_counts=True)
    alike = sorted(names[place] for place in np.flatnonzero(np.isin(every, kinds[counts > 1])))
    if not alike:
        return []
    places = {name.partition(b"/")[0] if b"/" in name else None for name in names}
    classes = None not in places and len(places) > 1  # as FileReader has it
    seen, further = set[tuple[int, int, bytes]](), list[bytes]()
    for name in alike:
        state = os.stat(os.path.join(base, name))
        # Other disks have the same numbers, and some file systems tell one number for all files.
        key = state.st_dev, state.st_ino, name.partition(b"/")[0] if classes else b""
        if state.st_nlink > 1 and key in seen:
            further.append(name)
        seen.add(key)
    return further


def listed(path: Path, where: str = "") -> FileReader:
    """The files named in a text file, one a line, relative to the list's own folder; # begins a comment."""
    try:
        text = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as failure:
        raise DataError(f"The list {where or path} cannot be read: {failure.strerror}.") from failure
    if b"\0" in text:
        raise DataError(f"The list {where or path} is UTF-16, or not text; save it as UTF-8, a path a line.")
    names = [line.strip() for line in text.splitlines()]
    names = [name for name in names if name and not name.startswith(b"#")]
    return FileReader(Path(os.path.abspath(path.parent)), names, where)

"""Image files in a folder or in a list: scanned once, held in a few bytes each."""

import hashlib
import os
import stat
from array import array
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from byol.data.decode import BadImage
from byol.data.spread import spread
from byol.errors import DataError

SUFFIXES = (
    b".jpg",
    b".jpeg",
    b".jpe",
    b".jfif",
    b".mpo",
    b".png",
    b".apng",
    b".webp",
    b".bmp",
    b".tif",
    b".tiff",
    b".gif",
)
GROUP = 64  # files that a thread reads before it takes others
MAX_BYTES = 2**30  # of one encoded picture; a larger file is none, and reading it could exhaust the memory


class FileReader:
    """Files under a root, by their relative paths in one buffer: about a hundred bytes less a file than Python objects."""

    def __init__(self, root: Path, names: Iterable[bytes]) -> None:
        self.root = os.fsencode(root)
        buffer, ends = bytearray(), array("Q")
        for name in names:
            buffer += name
            ends.append(len(buffer))
        self._names, self._ends = (
            bytes(buffer),
            np.frombuffer(ends, dtype=np.uint64) if ends else np.zeros(0, np.uint64),
        )

    def __len__(self) -> int:
        return len(self._ends)

    def raw_name(self, index: int) -> bytes:
        return self._names[int(self._ends[index - 1]) if index else 0 : int(self._ends[index])]

    def name(self, index: int) -> str:
        return os.fsdecode(self.raw_name(index))

    def read(self, index: int) -> bytes:
        return read_file(os.path.join(self.root, self.raw_name(index)))

    def identity(self) -> bytes:
        """A digest of every name, and of what a sample of the files holds."""
        digest = blake2b(self._names + self._ends.tobytes())
        for index in spread(len(self)):
            try:
                digest.update(blake2b(self.read(index)).digest())
            except BadImage as failure:
                digest.update(str(failure).encode())
        return digest.digest()

    def checksum(self) -> bytes:
        """A digest of all that the files hold."""
        return checksum([os.path.join(self.root, self.raw_name(index)) for index in range(len(self))])

    def first_folders(self) -> tuple[np.ndarray[Any, np.dtype[np.int64]], tuple[str, ...]] | None:
        """Labels from the first folder level: int64 (N,), and the folders' names in order; None unless there are several.

        A file beside the folders has no class, so then nothing has one.
        """
        folders: dict[bytes, int] = {}
        labels = array("q")
        for index in range(len(self)):
            first, separator, _ = self.raw_name(index).partition(b"/")
            if not separator:
                return None
            labels.append(folders.setdefault(first, len(folders)))
        if len(folders) < 2:
            return None
        names = sorted(folders)
        rank = {
            name: number for number, name in enumerate(names)
        }  # "a-b/1" comes before "a/1", but "a" before "a-b"
        ranks = np.array([rank[name] for name in folders])
        return ranks[np.frombuffer(labels, dtype=np.int64)], tuple(os.fsdecode(name) for name in names)

    def release(self) -> None:
        """Nothing is kept open."""


def checksum(paths: Sequence[str | bytes | Path]) -> bytes:
    """A digest of all that files hold, in their order; several threads read them."""
    groups = [paths[first : first + GROUP] for first in range(0, len(paths), GROUP)]
    with ThreadPoolExecutor() as threads:
        return blake2b(b"".join(threads.map(_digests, groups))).digest()


def _digests(paths: Sequence[str | bytes | Path]) -> bytes:
    """The digests of some files, one after the other; of a file that cannot be read that of the reason."""
    found = []
    for path in paths:
        try:
            if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would be waited for
                raise BadImage("it is not a regular file")
            with open(path, "rb") as file:
                found.append(hashlib.file_digest(file, blake2b).digest())
        except (OSError, ValueError, BadImage) as failure:  # ValueError: a name with a null byte
            found.append(
                blake2b(type(failure).__name__.encode()).digest()
            )  # without its words, which tell the whole path
    return b"".join(found)


def read_file(path: str | bytes | Path) -> bytes:
    """The bytes of a regular file. Raises BadImage; never waits on a pipe or a device."""
    try:
        state = os.stat(path)
        if not stat.S_ISREG(state.st_mode):
            raise BadImage("it is not a regular file")
        if state.st_size > MAX_BYTES:
            raise BadImage(f"its {state.st_size:,} bytes are more than the limit of {MAX_BYTES:,}")
        with open(path, "rb") as file:
            return file.read()
    except (OSError, ValueError) as failure:  # ValueError: a name with a null byte
        raise BadImage(getattr(failure, "strerror", None) or str(failure)) from failure


def scan(root: Path) -> FileReader:
    """Every image file under a folder, to any depth, in the order of their names.

    Hidden entries and __MACOSX are passed over. A symbolic link counts once and only when what it points to was not found
    otherwise; loops end by themselves. Pipes, sockets and dangling links are never opened. Raises DataError if the folder
    cannot be listed.
    """
    names: list[bytes] = []
    inodes, devices = array("Q"), array("Q")
    linked_files: list[tuple[bytes, tuple[int, int]]] = []
    visited: set[tuple[int, int]] = set()
    base = os.fsencode(root)
    folders, linked_folders = [b""], list[bytes]()
    while folders or linked_folders:
        # Links are followed last, so that a file is known by its own path where it has one.
        place = folders.pop() if folders else linked_folders.pop(0)
        path = os.path.join(base, place) if place else base
        try:
            state = os.stat(path)
            if (state.st_dev, state.st_ino) in visited:
                continue
            visited.add((state.st_dev, state.st_ino))
            with os.scandir(path) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except OSError as failure:
            raise DataError(
                f"The folder {os.fsdecode(path)} cannot be listed: {failure.strerror}."
            ) from failure
        deeper = []
        for entry in entries:
            if entry.name.startswith(b".") or entry.name == b"__MACOSX":
                continue
            name = place + b"/" + entry.name if place else entry.name
            if entry.is_symlink():
                target = os.path.join(path, entry.name)
                if os.path.isdir(target):  # unlike the entry's own method it answers a link to itself with no
                    linked_folders.append(name)
                elif os.path.isfile(target) and entry.name.lower().endswith(SUFFIXES):
                    behind = os.stat(target)
                    linked_files.append((name, (behind.st_dev, behind.st_ino)))
            elif entry.is_dir(follow_symlinks=False):
                deeper.append(name)
            elif entry.name.lower().endswith(SUFFIXES) and entry.is_file(follow_symlinks=False):
                names.append(name)
                inodes.append(entry.inode())
                devices.append(state.st_dev)
        folders += reversed(deeper)
    known = set(zip(devices, inodes, strict=True)) if linked_files else set()
    for name, identity in linked_files:
        if identity not in known:
            known.add(identity)
            names.append(name)
    names.sort()
    return FileReader(Path(os.path.abspath(root)), names)


def listed(path: Path) -> FileReader:
    """The files named in a text file, one a line, relative to the list's own folder; blank lines and # comments are skipped."""
    try:
        lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").splitlines()
    except OSError as failure:
        raise DataError(f"The list {path} cannot be read: {failure.strerror}.") from failure
    names = [line.strip() for line in lines]
    return FileReader(
        Path(os.path.abspath(path.parent)), [name for name in names if name and not name.startswith(b"#")]
    )

"""Images in parquet files, in the layout Hugging Face uses: `image` {bytes, path}, and often `label`."""

import glob
import logging
import os
import re
import shlex
import shutil
import tempfile
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from errno import ENOSPC
from functools import cached_property
from hashlib import blake2b
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from byol.data.decode import BadImage
from byol.data.labels import Labels, found_labels
from byol.data.readers.folder import HASHED, checksum, read_file, size_of
from byol.data.readers.reader import SAMPLE, Reader, Rows, evenly_spaced, lengths_of, names_of
from byol.data.windows import STRETCH, TOGETHER, Windows
from byol.disk import in_utf8, parse_json
from byol.errors import DataError, printable

IMAGE_NAMES = ("image", "img")
LABEL_NAMES = ("label", "labels", "fine_label")
SPLITS = {"train", "training", "test", "testing", "val", "valid", "validation", "dev"}
BLOCK = 4096  # bytes, of a file's sampled blocks
SAMPLED_GROUPS = 8
GROWTH = 2**27  # bytes that a row group may have beyond its file: pictures are packed and hardly shrink
HELD = 2**29  # bytes of row groups that are kept at a time where images come in an order that suits them
FEW = 4  # row groups: an order of fewer at a time is hardly shuffled
TOLD_BYTES = 2**30  # of pictures that are laid out, from which on people are told what they wait for
logger = logging.getLogger("byol")


class Group(NamedTuple):
    """A row group of a file."""

    path: Path
    number: int
    column: str  # of the images
    rows: int
    size: int  # bytes, unpacked
    most: int  # bytes that it may unpack to


class File(NamedTuple):
    """What is known of a file from its footer."""

    path: Path
    groups: list[Group]
    label: str  # column; "" without
    classes: tuple[str, ...] | None
    most: int  # bytes that a column may unpack to


class ParquetReader(Reader):
    """Rows of one or more parquet files. To read one of them, its whole row group is read.

    In any shuffled order that is thousands of pictures read for one. In the order of `windows` a few row
    groups are read at a time and kept until all of their pictures were requested; where they are too large
    for that, `gathered` makes the pictures ready.
    """

    def __init__(self, paths: list[Path], where: str = "") -> None:
        paths = [Path(os.path.abspath(path)) for path in paths]
        self.where, self.files = where, list(map(footer, paths))
        self.names = dict(zip(paths, names_of(paths), strict=True))
        self.groups = [group for file in self.files for group in file.groups]
        self.starts = [0, *accumulate(group.rows for group in self.groups)]  # first rows, and the total
        self._laid_out: tuple[Any, Rows, Rows] | None = None  # a file, and where each row begins and ends
        self._open: tuple[Path, int, Any] | None = None  # one file and who opened it: handles run out
        # The images of row groups, or why they cannot be read; the last one that was used is the last.
        self._held: OrderedDict[int, Any] = OrderedDict()
        self._most_held = 1
        largest, mean = max([1, *(group.size for group in self.groups)]), len(self) / max(1, len(self.groups))
        # Row groups that are shuffled with one another: as many images as of shards, where they can be held.
        self.together = min(HELD // largest, max(TOGETHER, int(STRETCH * TOGETHER / max(1, mean))))

    def __reduce__(self) -> tuple[Any, ...]:
        return ParquetReader, ([file.path for file in self.files], self.where)

    def __len__(self) -> int:
        return self.starts[-1]

    def name(self, index: int) -> str:
        group = self.groups[place := bisect_right(self.starts, index) - 1]
        return f"{self.names[group.path]}:{index - self.starts[place - group.number]}"

    def read(self, index: int) -> bytes:
        if self._laid_out is not None:
            file, starts, ends = self._laid_out
            if ends[index]:
                return os.pread(file.fileno(), int(ends[index] - starts[index]), int(starts[index]))
        place = bisect_right(self.starts, index) - 1
        group = self.groups[place]
        if place not in self._held:
            self._make_room(group.size)  # before it is read
            try:
                self._held[place] = self._read(group.path, [group.number], group.column, group.most, 16)
            except BadImage as failure:
                self._held[place] = str(failure)
        self._held.move_to_end(place)
        if isinstance(self._held[place], str):
            raise BadImage(self._held[place])
        try:
            value = self._held[place][index - self.starts[place]].as_py()
        except UnicodeDecodeError as failure:
            raise BadImage("its path is not UTF-8") from failure
        if isinstance(value, dict):
            if value["bytes"] is None and value.get("path"):
                return read_file(group.path.parent / value["path"])
            value = value["bytes"]
        if value is None:
            raise BadImage("the row holds no bytes")
        return bytes(value)

    def digest(self, everything: bool) -> bytes:
        paths = [file.path for file in self.files]
        digest = blake2b(checksum(paths) if everything or sum(map(size_of, paths)) <= HASHED else b"")
        for file in self.files:
            size = file.path.stat().st_size
            digest.update(f"{file.path.name}:{size}".encode("utf-8", "surrogateescape"))
            with open(file.path, "rb") as opened:
                for place in evenly_spaced(max(1, size - BLOCK + 1)):  # the footer is in the last
                    opened.seek(place)
                    digest.update(opened.read(BLOCK))
        return digest.digest()

    def sample(self, rows: Rows) -> list[int]:
        """Some rows of a few row groups."""
        of_group = np.searchsorted(self.starts, rows, side="right") - 1
        groups = np.unique(of_group)
        found: list[int] = []
        for group in groups[evenly_spaced(len(groups), SAMPLED_GROUPS)]:
            members = np.flatnonzero(of_group == group)
            found += members[evenly_spaced(len(members), SAMPLE // SAMPLED_GROUPS)].tolist()
        return found

    def release(self) -> None:
        """Let go of the row groups and the open file."""
        self._most_held = 1
        self._held.clear()
        self._close()

    def _make_room(self, size: int) -> None:
        """Let go of the row groups that were used longest ago, before one of so many bytes is read."""
        while self._held:
            held = sum(getattr(group, "nbytes", 0) for group in self._held.values())
            if len(self._held) < self._most_held and held + size <= HELD:
                return
            self._held.popitem(last=False)

    def _close(self) -> None:
        import pyarrow as pa

        if self._open is not None and self._open[1] == os.getpid():  # another process's handle is not ours
            self._open[2].close()  # now, not when the last reference goes
        self._open = None
        pa.default_memory_pool().release_unused()

    def windows(self, rows: Rows) -> Windows | None:
        """Row groups are kept together; None where they are too large to have several at a time."""
        lengths = lengths_of(np.searchsorted(self.starts, rows, side="right"))
        if lengths is None or (self.together < FEW and len(lengths) > 1):
            return None
        return Windows(lengths, stretch=int(lengths.max(initial=1)), together=max(1, self.together))

    def expect(self, rows: Rows) -> None:
        """Keep as many row groups from now on as a window has."""
        self._most_held = max(1, self.together)

    @contextmanager
    def gathered(self, rows: Rows, poll: Callable[[], object]) -> Iterator[None]:
        """For a while, read these rows from a temporary file without a name, written now in one pass.

        Where there is no room for it, or there are too few rows to matter, nothing changes. Processes that
        are forked meanwhile read from it too; the operating system deletes it with the last of them, even a
        killed one. `poll` is called between rows; it may raise, to stop.
        """
        groups = np.unique(np.searchsorted(self.starts, rows, side="right") - 1).tolist()
        size = sum(self.groups[place].size for place in groups)
        folders = os.environ.get("TMPDIR"), "/var/tmp", tempfile.gettempdir()  # /tmp may be kept in memory
        folder = next(one for one in folders if one and os.path.isdir(one) and os.access(one, os.W_OK))
        room = int(0.9 * shutil.disk_usage(folder).free)
        slow = "so reading pictures from parquet, whole row groups at a time, is slow"
        if size > room:
            logger.warning(
                f"{folder} has no room for {size / 1e9:.1f} GB, {slow}. Set TMPDIR to a folder with more."
            )
        elif size > TOLD_BYTES:
            logger.warning(f"Laying out {size / 1e9:.1f} GB of pictures for a shuffled order, in {folder}.")
        if len(groups) < 2 or size > room:
            yield
            return
        before = self._laid_out
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            starts, ends = np.zeros((2, len(self)), dtype=np.int64)
            end = 0
            try:
                for row in np.unique(rows).tolist():
                    poll()
                    with suppress(BadImage):  # reading it again will say why
                        data = self.read(row)
                        starts[row], ends[row] = end, end + len(data)
                        end += file.write(data)
                        if end < ends[row]:
                            raise OSError(ENOSPC, os.strerror(ENOSPC))
                self._laid_out = file, starts, ends
            except OSError as failure:
                file.truncate(0)
                logger.warning(f"Pictures could not be laid out ({failure}), {slow}.")
            self.release()
            try:
                yield
            finally:
                self._laid_out = before

    @cached_property
    def all_labels(self) -> Labels | None:
        """Of the label column; numbers are named by themselves where the file names no classes."""
        label, *others = sorted({file.label for file in self.files})
        if others:
            told = f"their label columns are called {', '.join([label, *others])}"
            if bare := [file.path for file in self.files if not file.label]:
                told = f"{len(bare):,} of {len(self.files):,} files have no label column, {bare[0]} the first"
            logger.warning(f"The images in {self.where} count as unlabelled: {told}.")
        if others or not label:
            return None
        try:
            parts = [self._read(file.path, None, label, file.most, 256).to_numpy() for file in self.files]
        except BadImage as failure:
            raise DataError(f"The labels in {self.where} cannot be read: {failure}.") from failure
        names = {file.classes for file in self.files if file.classes is not None}
        if len(names) < 2:
            return found_labels(np.concatenate(parts), len(self), next(iter(names), None))
        # Of several data sets, in each of which a number means another class.
        each = [
            found_labels(part, len(part), file.classes) for file, part in zip(self.files, parts, strict=True)
        ]
        known = [labels for labels in each if labels is not None]
        every = tuple(dict.fromkeys(name for labels in known for name in labels.classes))
        shapes = {labels.values.ndim for labels in known}
        if len(known) < len(each) or len(shapes) > 1:
            return None
        return Labels(np.concatenate([labels.renumbered(every).values for labels in known]), every)

    def _read(self, path: Path, groups: list[int] | None, column: str, most: int, rows: int) -> Any:
        """A column of some row groups, of all when None, so many rows at once. Raises BadImage."""
        import pyarrow as pa
        from pyarrow.parquet import ParquetFile

        if self._open is None or self._open[:2] != (path, os.getpid()):
            self._close()
            with in_utf8(path) as named:
                self._open = path, os.getpid(), ParquetFile(named)
        opened, parts, size = self._open[2], [], 0
        try:
            for batch in opened.iter_batches(rows, row_groups=groups, columns=[column], use_threads=False):
                parts.append(batch.column(0))
                size += batch.nbytes
                if size > most:
                    raise ValueError(f"it unpacks to more than {most:,} bytes")
            return pa.chunked_array(parts, opened.schema_arrow.field(column).type)
        except Exception as failure:  # pyarrow raises several unrelated types for damaged files
            raise BadImage(f"its part of the file cannot be read ({failure})") from failure


def shards(folder: Path, endings: tuple[str, ...] = (".parquet",)) -> list[Path]:
    """The files of such endings under a folder, sorted; none when it is a folder of something else.

    Raises DataError when their names tell of several splits: a test set must not slip into training.
    """
    splits: dict[str, Path] = {}
    paths = [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in endings
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    for path in paths:
        for word in splits_in(str(path.relative_to(folder))):
            splits.setdefault(word, path)
    if len(splits) > 1:
        found, word = ", ".join(sorted(splits)), to_train_on(splits)
        one = shlex.quote(files_of(word, splits[word], folder))
        raise DataError(f"{folder} holds the splits {found}. Give the files of one, such as {one}.")
    return paths


def splits_in(name: str) -> set[str]:
    """The splits that a name tells of."""
    return set(re.split(r"[^a-z]+", name.lower())) & SPLITS


def to_train_on(splits: Iterable[str]) -> str:
    """The split that most people want."""
    return min(splits, key=lambda name: (not name.lower().startswith("train"), name))


def files_of(split: str, path: Path, folder: Path) -> str:
    """What to give for the split of a file: the folder of this name, or a pattern of files."""
    parts = path.relative_to(folder).parts
    depth = next(depth for depth, part in enumerate(parts) if split in splits_in(part))
    if depth < len(parts) - 1:
        return str(folder.joinpath(*parts[: depth + 1]))
    start = path.name.lower().index(split)
    name = path.name[start : start + len(split)]
    return f"{glob.escape(str(path.parent))}/{'*' if start else ''}{name}*{path.suffix}"


def footer(path: Path) -> File:
    """What a file's footer tells.

    Raises DataError, also for a small file that claims to hold a lot: pictures are packed and hardly shrink.
    """
    try:
        import pyarrow as pa
        from pyarrow.parquet import ParquetFile
    except ImportError as failure:
        raise DataError("Reading parquet needs pyarrow. Run: pip install 'byol[parquet]'") from failure
    name, groups = printable(str(path)), []
    try:
        with in_utf8(path) as named, ParquetFile(named) as file:
            metadata, schema = file.metadata, file.schema_arrow
        written = parse_json((schema.metadata or {}).get(b"huggingface", b"{}"))
        told = written.get("info", {}).get("features", {})
        image = next((column for column in IMAGE_NAMES if column in schema.names), "")
        label = next((column for column in LABEL_NAMES if column in schema.names), "")
        size = path.stat().st_size
        most, claimed = size + GROWTH, 0  # bytes of a row group, and rows of all
        for number in range(metadata.num_row_groups):
            group = metadata.row_group(number)
            rows, unpacked = group.num_rows, group.total_byte_size
            claimed += rows
            if claimed > size or unpacked > most:  # group.column(0) would end the process where it is damaged
                raise ValueError(f"{size:,} bytes claim {claimed:,} rows or more, of {unpacked:,} bytes")
            groups.append(Group(path, number, image, rows, unpacked, most))
    except Exception as failure:  # pyarrow raises several unrelated types for damaged files
        raise DataError(f"{name} cannot be read as parquet ({failure}). Give other files.") from failure
    kind = schema.field(image).type if image else pa.null()
    nested = pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
    if not (nested or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        columns = ", ".join(f"{field.name} ({field.type})" for field in schema) or "none"
        raise DataError(
            f"{name} has the columns {columns}; expected `image` or `img` (bytes and path, as Hugging Face "
            "writes it) and, if there are labels, `label`."
        )
    classes = told[label].get("names") if isinstance(told.get(label), dict) else None
    return File(path, groups, label, tuple(classes) if isinstance(classes, list) else None, most)

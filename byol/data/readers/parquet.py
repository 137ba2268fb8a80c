"""Images in parquet files, in the layout Hugging Face uses: `image` {bytes, path}, and often `label`."""

import logging
import os
import re
import shutil
import tempfile
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from errno import ENOSPC
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from byol.data.decode import BadImage
from byol.data.labels import Labels, found_labels
from byol.data.readers.folder import checksum, read_file
from byol.data.readers.reader import SAMPLE, Reader, Rows, evenly_spaced
from byol.disk import parse_json
from byol.errors import DataError, printable

IMAGE_NAMES = ("image", "img")
LABEL_NAMES = ("label", "labels", "fine_label")
SPLITS = {"train", "training", "test", "testing", "val", "valid", "validation", "dev"}
BLOCK = 4096  # bytes, of a file's sampled blocks
SAMPLED_GROUPS = 8
TOLD_BYTES = 2**30  # of pictures that are laid out, from which on people are told what they wait for
logger = logging.getLogger("byol")


@dataclass(frozen=True)
class File:
    """What is known of a file from its footer."""

    path: Path
    image: str  # column
    label: str | None  # column
    classes: tuple[str, ...] | None
    groups: list[tuple[int, int, int]]  # of each row group: rows, bytes, and most bytes it may unpack to
    most: int  # bytes that a column may unpack to


class ParquetReader(Reader):
    """Rows of one or more parquet files. A row group is read as a whole when one of its rows is asked for.

    In a shuffled order that is thousands of pictures read for one: `gathered` makes those that are used
    ready.
    """

    def __init__(self, paths: list[Path], where: str = "") -> None:
        self.where, self.files = where, [footer(Path(os.path.abspath(path))) for path in paths]
        self.groups = [(file, group) for file in self.files for group in range(len(file.groups))]
        self.starts = [0]  # first row of each group, and the total
        for file, group in self.groups:
            self.starts.append(self.starts[-1] + file.groups[group][0])
        self._laid_out: tuple[Any, Rows, Rows] | None = None  # a file, and where each row begins and ends
        self._open: tuple[Path, Any] | None = None  # one file: of thousands the handles would run out
        self._group: tuple[int, Any] = (-1, None)  # the images of one row group, or why they cannot be read
        self._process = os.getpid()

    def __reduce__(self) -> tuple[Any, ...]:
        return ParquetReader, ([file.path for file in self.files], self.where)

    def __len__(self) -> int:
        return self.starts[-1]

    def name(self, index: int) -> str:
        file, group = self.groups[place := bisect_right(self.starts, index) - 1]
        return f"{file.path.name}:{index - self.starts[place - group]}"

    def read(self, index: int) -> bytes:
        if self._laid_out is not None:
            file, starts, ends = self._laid_out
            if ends[index]:
                return os.pread(file.fileno(), int(ends[index] - starts[index]), int(starts[index]))
        group = bisect_right(self.starts, index) - 1
        column = self._column(group)
        try:
            value = column[index - self.starts[group]].as_py()
        except UnicodeDecodeError as failure:
            raise BadImage("its path is not UTF-8") from failure
        if isinstance(value, dict):
            if value["bytes"] is None and value.get("path"):
                return read_file(self.groups[group][0].path.parent / value["path"])
            value = value["bytes"]
        if value is None:
            raise BadImage("the row holds no bytes")
        return bytes(value)

    def labels(self, rows: Rows) -> Labels | None:
        return self._labels and self._labels.of(rows)

    def digest(self, everything: bool) -> bytes:
        digest = blake2b(checksum([file.path for file in self.files]) if everything else b"")
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
        """Let go of the row group and the open file."""
        import pyarrow as pa

        self._close()
        self._group = -1, None
        pa.default_memory_pool().release_unused()

    @contextmanager
    def gathered(self, rows: Rows, poll: Callable[[], object]) -> Iterator[None]:
        """For a while, read these rows from a temporary file without a name, written now in one pass.

        Where there is no room for it, or there are too few rows to matter, nothing changes. Processes that
        are forked meanwhile read from it too; the operating system deletes it with the last of them, even a
        killed one. `poll` is called between rows; it may raise, to stop.
        """
        groups = np.unique(np.searchsorted(self.starts, rows, side="right") - 1)
        size = sum(file.groups[group][1] for file, group in (self.groups[place] for place in groups))
        folders = os.environ.get("TMPDIR"), "/var/tmp", tempfile.gettempdir()  # /tmp may be kept in memory
        folder = next(one for one in folders if one and os.path.isdir(one) and os.access(one, os.W_OK))
        room = int(0.9 * shutil.disk_usage(folder).free)
        slow = "reading pictures from parquet, whole row groups at a time, is slow"
        if size > room:
            logger.warning(
                f"{folder} has no room for {size / 1e9:.1f} GB, so {slow}. Set TMPDIR to a folder with more."
            )
        elif size > TOLD_BYTES:
            logger.warning(f"Laying out {size / 1e9:.1f} GB of pictures for a shuffled order, in {folder}.")
        if len(groups) < 2 or size > room:
            yield
            return
        before = self._laid_out
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            try:
                self._laid_out = self._lay_out(np.unique(rows), file, poll)
            except OSError as failure:
                file.truncate(0)
                logger.warning(f"Pictures could not be laid out ({failure}), so {slow}.")
            self.release()
            try:
                yield
            finally:
                self._laid_out = before

    def _lay_out(self, rows: Rows, file: Any, poll: Callable[[], object]) -> tuple[Any, Rows, Rows]:
        """Write the rows that can be read, one behind the other; reading another one says why it cannot."""
        starts, ends = np.zeros((2, len(self)), dtype=np.int64)
        end = 0
        for row in rows.tolist():
            poll()
            try:
                data = self.read(row)
            except BadImage:
                continue
            if file.write(data) < len(data):
                raise OSError(ENOSPC, os.strerror(ENOSPC))
            starts[row], ends[row] = end, end + len(data)
            end += len(data)
        return file, starts, ends

    @cached_property
    def _labels(self) -> Labels | None:
        """Of the label column; numbers are named by themselves where the file names no classes."""
        label = self.files[0].label
        if label is None or any(file.label != label for file in self.files):
            return None
        try:
            parts = [self._read(file, None, label, file.most, 256).to_numpy() for file in self.files]
        except BadImage as failure:
            raise DataError(f"The labels in {self.where} cannot be read: {failure}.") from failure
        return found_labels(np.concatenate(parts), len(self), self.files[0].classes)

    def _column(self, group: int) -> Any:
        """The images of a row group, which is kept until one of another is asked for. Raises BadImage."""
        if group != self._group[0]:
            self._group = -1, None  # before the next one is read
            file, number = self.groups[group]
            try:
                found = self._read(file, [number], file.image, file.groups[number][2], 16)
            except BadImage as failure:
                found = str(failure)
            self._group = group, found
        if isinstance(self._group[1], str):
            raise BadImage(self._group[1])
        return self._group[1]

    def _read(self, file: File, groups: list[int] | None, column: str, limit: int, rows: int) -> Any:
        """A column of some row groups, of all when None, so many rows at once. Raises BadImage."""
        import pyarrow as pa

        if self._open is None or self._open[0] != file.path or self._process != os.getpid():
            self._close()
            self._open, self._process = (file.path, pyarrow_parquet().ParquetFile(file.path)), os.getpid()
        opened, parts, size = self._open[1], [], 0
        try:
            for batch in opened.iter_batches(rows, row_groups=groups, columns=[column], use_threads=False):
                parts.append(batch.column(0))
                size += batch.nbytes
                if size > limit:
                    raise ValueError(f"it unpacks to more than {limit:,} bytes")
            return pa.chunked_array(parts, opened.schema_arrow.field(column).type)
        except Exception as failure:  # pyarrow answers damaged files with several unrelated types
            raise BadImage(f"its part of the file cannot be read ({failure})") from failure

    def _close(self) -> None:
        if self._open is not None and self._process == os.getpid():  # another process's handle is not ours
            self._open[1].close()  # now, not when the last reference goes
        self._open = None


def shards(folder: Path) -> list[Path]:
    """The parquet files under a folder, sorted; none when it is a folder of something else.

    Raises DataError when their names tell of several splits: a test set must not slip into training.
    """
    paths: list[Path] = []
    splits: dict[str, Path] = {}
    for path in sorted(folder.rglob("*.parquet")):
        within = path.relative_to(folder)
        if any(part.startswith(".") for part in within.parts) or not path.is_file():
            continue
        paths.append(path)
        for word in set(re.split(r"[^a-z]+", str(within).lower())) & SPLITS:
            splits.setdefault(word, path)
    if len(splits) > 1:
        raise DataError(
            f"{folder} holds the splits {', '.join(sorted(splits))}. Give the files of one, such as "
            f"{next(iter(splits.values()))}, or a pattern in quotes such as "
            f"'{folder}/{next(iter(splits))}*.parquet'."
        )
    return paths


def footer(path: Path) -> File:
    """What a file's footer tells.

    Raises DataError, also for a small file that claims to hold a lot: pictures are packed and hardly shrink.
    """
    parquet, groups = pyarrow_parquet(), []
    import pyarrow as pa

    try:
        with parquet.ParquetFile(path) as file:
            metadata, schema = file.metadata, file.schema_arrow
        size = path.stat().st_size
        for number in range(metadata.num_row_groups):
            group = metadata.row_group(number)
            limit = limit_of(sum(group.column(n).total_compressed_size for n in range(group.num_columns)))
            if group.num_rows > size or group.total_byte_size > min(limit, limit_of(size)):
                raise ValueError(
                    f"{size:,} bytes claim {group.num_rows:,} rows of {group.total_byte_size:,} bytes"
                )
            groups.append((group.num_rows, group.total_byte_size, limit))
        told = (
            parse_json((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
        )
    except Exception as failure:  # pyarrow answers damaged files with several unrelated types
        name = printable(str(path))
        raise DataError(f"{name} cannot be read as parquet ({failure}). Give other files.") from failure
    image = next((name for name in IMAGE_NAMES if name in schema.names), None)
    kind = None if image is None else schema.field(image).type
    nested = kind is not None and pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
    if image is None or not (nested or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        columns = ", ".join(f"{field.name} ({field.type})" for field in schema) or "none"
        raise DataError(
            f"{printable(str(path))} has the columns {columns}; expected `image` or `img` (bytes and path, as Hugging "
            "Face writes it) and, if there are labels, `label`."
        )
    label = next((name for name in LABEL_NAMES if name in schema.names), None)
    classes = told[label].get("names") if isinstance(told.get(label), dict) else None
    return File(
        path, image, label, tuple(classes) if isinstance(classes, list) else None, groups, limit_of(size)
    )


def limit_of(packed: int) -> int:
    """How many bytes so many may unpack to."""
    return int(2**20 + 100 * packed)


def pyarrow_parquet() -> Any:
    try:
        import pyarrow.parquet as pq
    except ImportError as failure:
        raise DataError("Reading parquet needs pyarrow. Run: pip install 'byol[parquet]'") from failure
    return pq

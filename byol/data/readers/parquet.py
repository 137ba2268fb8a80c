"""Images in parquet files, in the layout Hugging Face uses: `image` {bytes, path}, and often `label`."""

import json
import logging
import os
import re
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from byol.data.decode import BadImage
from byol.data.labels import Labels, found_labels
from byol.data.readers.folder import checksum
from byol.data.readers.gathered import Gathered, room_for
from byol.data.spread import spread
from byol.disk import parse_json
from byol.errors import DataError

IMAGE_NAMES = ("image", "img")
LABEL_NAMES = ("label", "labels", "fine_label")
SPLITS = {"train", "training", "test", "testing", "val", "valid", "validation", "dev"}
CACHE_BYTES = 16 * 2**20  # of row groups kept, because neighbours are asked for one after another
Rows = np.ndarray[Any, np.dtype[np.int64]]
logger = logging.getLogger("byol")
BLOCK = 4096  # bytes, of a file's sampled blocks


class ParquetReader:
    """Rows of one or more parquet files. A row group is read as a whole when one of its rows is asked for.

    In a shuffled order that is thousands of pictures read for one: `gathered` makes those that are used ready for it.
    """

    def __init__(self, paths: list[Path]) -> None:
        self.paths = [Path(os.path.abspath(path)) for path in paths]
        self.groups: list[tuple[int, int]] = []  # (file, row group)
        self.sizes: list[int] = []  # bytes of each group, decompressed
        self.starts = [0]  # first row of each group, and the total
        self.file_starts: list[int] = []
        self.columns: list[_Columns] = []
        for number, path in enumerate(self.paths):
            metadata, columns = _opened(path)
            self.columns.append(columns)
            self.file_starts.append(self.starts[-1])
            for group in range(metadata.num_row_groups):
                self.groups.append((number, group))
                self.sizes.append(metadata.row_group(group).total_byte_size)
                self.starts.append(self.starts[-1] + metadata.row_group(group).num_rows)
        self._gathered: Gathered | None = None
        self._forget()

    def __len__(self) -> int:
        return self.starts[-1]

    def name(self, index: int) -> str:
        number = bisect_right(self.file_starts, index) - 1
        return f"{self.paths[number].name}:{index - self.file_starts[number]}"

    @contextmanager
    def gathered(self, rows: Rows | None = None) -> Iterator[None]:
        """For a while, read the given rows, all when None, from a temporary file that is written now in one pass.

        Where there is no room for it, or there are too few rows to matter, nothing changes. Processes started meanwhile
        by a fork read from it too. Rows that cannot be read are not in it; reading one says why.
        """
        rows = np.arange(len(self)) if rows is None else np.unique(rows)
        of_group = np.searchsorted(self.starts, rows, side="right") - 1
        groups = np.unique(of_group)
        if len(groups) < 2 or not room_for(sum(self.sizes[group] for group in groups)):
            yield
            return
        before = self._gathered
        try:
            self._gathered = Gathered(len(self), self._in_order(rows, of_group))
        except OSError as failure:
            logger.warning(
                "Pictures could not be laid out for a shuffled order (%s): reading them is slow.", failure
            )
        self.release()
        try:
            yield
        finally:
            if self._gathered is not None and self._gathered is not before:
                self._gathered.close()
            self._gathered = before

    def read(self, index: int) -> bytes:
        found = None if self._gathered is None else self._gathered.read(index)
        if found is not None:
            return found
        group = bisect_right(self.starts, index) - 1
        try:
            data = self._column(group)[index - self.starts[group]].as_py()
        except Exception as failure:  # pyarrow answers damaged files with several unrelated types
            raise BadImage(f"its part of the file cannot be read ({failure})") from failure
        if data is None:
            raise BadImage("the row holds no bytes")
        return bytes(data)

    def labels(self) -> Labels | None:
        """The label column and the classes' names; numbers are named by themselves where the file names none."""
        names = {columns.label for columns in self.columns}
        if None in names or len(names) > 1:
            return None
        pq, label = _pyarrow_parquet(), str(names.pop())
        parts = [pq.read_table(path, columns=[label])[label].to_numpy() for path in self.paths]
        return found_labels(np.concatenate(parts), len(self), self.columns[0].classes)

    def identity(self) -> bytes:
        """A digest of the files' names and sizes, and of blocks spread over what they hold, the footer among them."""
        digest = blake2b()
        for path in self.paths:
            size = path.stat().st_size
            digest.update(f"{path.name}:{size}".encode("utf-8", "surrogateescape"))
            with open(path, "rb") as file:
                for place in spread(max(1, size - BLOCK + 1)):
                    file.seek(place)
                    digest.update(file.read(BLOCK))
        return digest.digest()

    def checksum(self) -> bytes:
        """A digest of all that the files hold."""
        return checksum(self.paths)

    def release(self) -> None:
        """Let go of cached row groups and file handles."""
        for file in self._files.values() if self._process == os.getpid() else ():
            file.close()  # now, not when the last reference goes
        self._forget()
        import pyarrow as pa

        pa.default_memory_pool().release_unused()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if not name.startswith("_")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._gathered = None
        self._forget()

    def _forget(self) -> None:
        self._process = os.getpid()
        self._files: dict[int, Any] = {}
        self._cache: OrderedDict[int, Any] = OrderedDict()
        self._bytes = 0

    def _in_order(self, rows: Rows, of_group: Rows) -> Iterator[tuple[int, Any]]:
        """(row, its bytes) of the rows that can be read, one row group after another."""
        groups, firsts = np.unique(of_group, return_index=True)
        for group, members in zip(groups.tolist(), np.split(rows, firsts[1:]), strict=True):
            self._cache.clear()  # no group is asked for twice
            self._bytes = 0
            try:
                column = self._column(group)
            except Exception:  # as in `read`, which says so of each of its rows
                continue
            for row in members.tolist():
                value = column[row - self.starts[group]]
                if value.is_valid:
                    yield row, value.as_buffer()

    def _column(self, group: int) -> Any:
        if self._process != os.getpid():  # a worker: handles of another process are not ours to use
            self._forget()
        if group in self._cache:
            self._cache.move_to_end(group)
            return self._cache[group]
        number, row_group = self.groups[group]
        if number not in self._files:
            self._files[number] = _pyarrow_parquet().ParquetFile(self.paths[number])
        columns = self.columns[number]
        table = self._files[number].read_row_group(row_group, columns=[columns.image], use_threads=False)
        column = table[columns.image].combine_chunks()
        if columns.nested:
            column = column.field("bytes")
        self._cache[group] = column
        self._bytes += column.nbytes
        while self._bytes > CACHE_BYTES and len(self._cache) > 1:
            self._bytes -= self._cache.popitem(last=False)[1].nbytes
        return column


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
            f"{next(iter(splits.values()))}, or a pattern in quotes such as '{folder}/{next(iter(splits))}*.parquet'."
        )
    return paths


@dataclass(frozen=True)
class _Columns:
    """Where one file keeps its pictures and labels."""

    image: str
    nested: bool  # the image is a struct {bytes, path}, not the bytes themselves
    label: str | None
    classes: tuple[str, ...] | None


def _opened(path: Path) -> tuple[Any, _Columns]:
    """A file's metadata and columns. Raises DataError."""
    pq = _pyarrow_parquet()
    import pyarrow as pa

    try:
        metadata, schema = pq.read_metadata(path), pq.read_schema(path)
        told = (
            parse_json((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
        )
    except Exception as failure:  # pyarrow answers damaged files with several unrelated types
        raise DataError(
            f"{path} cannot be read as parquet ({failure}). Give parquet files, or another source."
        ) from failure
    image = next((name for name in IMAGE_NAMES if name in schema.names), None)
    kind = None if image is None else schema.field(image).type
    nested = kind is not None and pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
    if image is None or not (nested or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        columns = ", ".join(f"{field.name} ({field.type})" for field in schema) or "none"
        raise DataError(
            f"{path} has the columns {columns}; expected `image` or `img` (bytes and path, as Hugging Face writes it) and, "
            "if there are labels, `label`."
        )
    label = next((name for name in LABEL_NAMES if name in schema.names), None)
    feature = told.get(label)
    classes = feature.get("names") if isinstance(feature, dict) else None
    return metadata, _Columns(image, nested, label, tuple(classes) if isinstance(classes, list) else None)


def _pyarrow_parquet() -> Any:
    try:
        import pyarrow.parquet as pq
    except ImportError as failure:
        raise DataError("Reading parquet needs pyarrow. Run: pip install 'byol[parquet]'") from failure
    return pq

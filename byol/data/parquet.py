"""Images in parquet files, in the layout Hugging Face uses: `image` {bytes, path}, and often `label`."""

import json
import os
import re
from bisect import bisect_right
from collections import OrderedDict
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from byol.data.decode import BadImage
from byol.data.labels import Labels, found_labels
from byol.data.spread import spread
from byol.errors import DataError

IMAGE_NAMES = ("image", "img")
LABEL_NAMES = ("label", "labels", "fine_label")
SPLITS = {"train", "training", "test", "testing", "val", "valid", "validation", "dev"}
CACHE_BYTES = 256 * 2**20  # of row groups kept, because a shuffled order asks for neighbours again and again


class ParquetReader:
    """Rows of one or more parquet files. A row group is read as a whole when one of its rows is asked for."""

    def __init__(self, paths: list[Path]) -> None:
        pq = _pyarrow_parquet()
        self.paths = paths
        self.groups: list[tuple[int, int]] = []  # (file, row group)
        self.starts = [0]  # first row of each group, and the total
        self.file_starts: list[int] = []
        self.identities: list[str] = []
        self.features: dict[str, Any] = {}
        for number, path in enumerate(paths):
            try:
                metadata = pq.read_metadata(path)
                schema = pq.read_schema(path)
            except Exception as failure:  # pyarrow answers damaged files with several unrelated types
                raise DataError(f"{path} cannot be read as parquet ({failure}). Give parquet files, or another source.") from failure
            if "image" not in schema.names:
                raise DataError(
                    f"{path} has the columns {', '.join(schema.names) or 'none'}; expected `image` (bytes and path, "
                    "as Hugging Face writes it) and, if there are labels, `label`."
                )
            self.nested = hasattr(schema.field("image").type, "fields")
            self.labelled = "label" in schema.names
            self.features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
            self.file_starts.append(self.starts[-1])
            self.identities.append(f"{path.name}:{metadata.num_rows}:{metadata.serialized_size}:{path.stat().st_size}")
            for group in range(metadata.num_row_groups):
                self.groups.append((number, group))
                self.starts.append(self.starts[-1] + metadata.row_group(group).num_rows)
        self._forget()

    def __len__(self) -> int:
        return self.starts[-1]

    def name(self, index: int) -> str:
        number = bisect_right(self.file_starts, index) - 1
        return f"{self.paths[number].name}:{index - self.file_starts[number]}"

    def read(self, index: int) -> bytes:
        group = bisect_right(self.starts, index) - 1
        data = self._column(group)[index - self.starts[group]].as_py()
        if data is None:
            raise BadImage("the row holds no bytes")
        return bytes(data)

    def labels(self) -> tuple[np.ndarray[Any, np.dtype[np.int64]], tuple[str, ...]] | None:
        """The label column and the classes' names; numbers are named by themselves where the file names none."""
        if not self.labelled:
            return None
        pq = _pyarrow_parquet()
        parts = [pq.read_table(path, columns=["label"])["label"].to_numpy() for path in self.paths]
        values = np.concatenate(parts)
        if values.dtype.kind not in "iu":
            raise DataError(f"The label column holds {values.dtype} values; expected whole numbers from 0.")
        named = self.features.get("label", {}).get("names") if isinstance(self.features.get("label"), dict) else None
        names = named or [str(number) for number in range(int(values.max(initial=-1)) + 1)]
        return values.astype(np.int64), tuple(names)

    def identity(self) -> bytes:
        return blake2b("\n".join(self.identities).encode()).digest()

    def release(self) -> None:
        """Let go of cached row groups and file handles."""
        self._forget()
        import pyarrow as pa

        pa.default_memory_pool().release_unused()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if not name.startswith("_")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def _forget(self) -> None:
        self._process = os.getpid()
        self._files: dict[int, Any] = {}
        self._cache: OrderedDict[int, Any] = OrderedDict()
        self._bytes = 0

    def _column(self, group: int) -> Any:
        if self._process != os.getpid():  # a worker: handles of another process are not ours to use
            self._forget()
        if group in self._cache:
            self._cache.move_to_end(group)
            return self._cache[group]
        number, row_group = self.groups[group]
        if number not in self._files:
            self._files[number] = _pyarrow_parquet().ParquetFile(self.paths[number])
        column = self._files[number].read_row_group(row_group, columns=["image"], use_threads=False)["image"].combine_chunks()
        if self.nested:
            column = column.field("bytes")
        self._cache[group] = column
        self._bytes += column.nbytes
        while self._bytes > CACHE_BYTES and len(self._cache) > 1:
            self._bytes -= self._cache.popitem(last=False)[1].nbytes
        return column


def shards(folder: Path) -> list[Path]:
    """The parquet files of a folder, sorted; none when it is a folder of something else."""
    return sorted(path for path in folder.glob("*.parquet") if path.is_file())


def _pyarrow_parquet() -> Any:
    try:
        import pyarrow.parquet as pq
    except ImportError as failure:
        raise DataError("Reading parquet needs pyarrow. Run: pip install 'byol[parquet]'") from failure
    return pq

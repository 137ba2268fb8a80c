"""embeddings.parquet beside a map: the same images for FiftyOne, Spotlight and embedding-atlas.

The columns are those that these programs ask for: `filepath` (FiftyOne, Spotlight), `embedding`, of one
length in every row (all three), `projection_x`, `projection_y` and `neighbors` (embedding-atlas).
"""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from byol.features.features import Features
from byol.report.explorer import Column, Map

FILE = "embeddings.parquet"
ROWS = 16_384  # that are in memory at once


def can_be_written() -> bool:
    return find_spec("pyarrow") is not None


def write_embeddings(
    path: Path, features: Features, maps: Sequence[Map], names: Sequence[str], columns: Sequence[Column],
    root: Path | None = None,
) -> None:  # fmt: skip
    """Write it; names of files begin at `root`, where they are files."""
    import pyarrow.parquet as pq

    writer = None
    try:
        for first in range(0, len(names), ROWS):
            part = table_of(features, maps, names, columns, root, slice(first, first + ROWS))
            writer = writer or pq.ParquetWriter(path, part.schema)
            writer.write_table(part)
    finally:
        if writer is not None:
            writer.close()


def table_of(
    features: Features, maps: Sequence[Map], names: Sequence[str], columns: Sequence[Column],
    root: Path | None, rows: slice,
) -> Any:  # fmt: skip
    """Some of the rows. A column whose name another one has already is told apart by a number."""
    import pyarrow as pa

    x = np.ascontiguousarray(features.x[rows], dtype=np.float32)
    some = [text(name) for name in names[rows]]
    files = some if root is None else [str(root / name) for name in some]
    found: dict[str, Any] = {"filepath": pa.array(files, pa.string()), "name": pa.array(some, pa.string())}
    found["embedding"] = pa.FixedSizeListArray.from_arrays(x.reshape(-1), x.shape[1])
    for place, one in enumerate(reversed(maps)):
        for axis, values in zip("xy", one.points[rows].T, strict=True):
            found[f"projection_{axis}" if not place else f"before_{axis}"] = pa.array(values, pa.float32())
    near = maps[-1].near
    ends = pa.array(np.arange(len(some) + 1) * near.rows.shape[1], pa.int32())
    places = pa.array(near.rows[rows].reshape(-1), pa.int64())
    distances = pa.array(1 - near.similarities[rows].reshape(-1), pa.float32())
    lists = [pa.ListArray.from_arrays(ends, values) for values in (places, distances)]
    found["neighbors"] = pa.StructArray.from_arrays(lists, ["ids", "distances"])
    for column in columns:
        name, number = text(column.name), 2
        while name in found:
            name, number = f"{text(column.name)} {number}", number + 1
        values = column.values[rows]
        if column.classes is None:
            found[name] = pa.array(values, pa.float64())
        else:
            found[name] = pa.array([text(column.classes[place]) for place in values], pa.string())
    return pa.table(found)


def text(word: str) -> str:
    """A name as it is; what is no Unicode in it, as in a file's may be, as people are shown it."""
    return word.encode(errors="backslashreplace").decode()

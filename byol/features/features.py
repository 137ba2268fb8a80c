"""`Features`: a matrix with a row per image, and the files it is kept in: .npz, .npy, .parquet, .safetensors."""

import json
import mmap
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from byol.data.labels import is_matrix
from byol.disk import parse_json, replacing
from byol.errors import ByolError, ConfigError, DataError, complaint

BLOCK = 2**24  # bytes of rows that are worked on at once
FORMATS = (".npz", ".npy", ".parquet", ".safetensors")
Array = np.ndarray[Any, np.dtype[Any]]
Rows = np.ndarray[Any, np.dtype[np.int64]]
Values = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class Features:
    """The representations of a set of images, in the images' order."""

    x: Values  # (N, D)
    y: Rows | None = None  # (N,) class numbers, or (N, classes) of 0 and 1, when the images carry labels
    names: list[str] = field(default_factory=list)  # N, or none
    classes: tuple[str, ...] | None = None  # what the class numbers stand for
    encoder: str | None = None  # `Encoder.checksum` of what gave them, where that is known

    def __post_init__(self) -> None:
        # Other numbers are taken too: float64 of scikit-learn, labels of a byte each.
        try:
            x, y = np.asarray(self.x, dtype=np.float32), None if self.y is None else np.asarray(self.y)
        except (ValueError, TypeError) as failure:  # rows of several lengths, words
            raise DataError(
                f"The features are no matrix of numbers ({failure}); expected (N, D): one row per image."
            ) from failure
        if x.ndim != 2 or 0 in x.shape:
            raise DataError(f"Features have shape {x.shape}; expected (N, D): one row per image.")
        check_finite(x, "The encoder's weights are damaged or diverged; take another checkpoint.")
        if self.names and len(self.names) != len(x):
            raise DataError(
                f"There are {len(self.names)} names for {len(x)} feature rows; expected one each."
            )
        if y is not None:
            check_labels(y, len(x), self.classes)
            y = y.astype(np.int64, copy=False)
        object.__setattr__(self, "x", x)
        object.__setattr__(self, "y", y)

    def __len__(self) -> int:
        return len(self.x)

    @property
    def description(self) -> str:
        """For people: "features of 1,234 images"."""
        return f"features of {len(self.x):,} images"

    def save(self, path: str | Path) -> None:
        """Write a file of the kind its suffix says; it appears as a whole or not at all.

        .npz has x, y, names, classes, encoder; .npy x alone; .parquet the columns name, label, x; .safetensors x, y and the
        names as UTF-8 bytes `names` with the end of each in `name_ends`. Raises ConfigError for another suffix.
        """
        path = Path(path)
        check_format(path)
        with replacing(path) as temporary:
            _WRITERS[path.suffix](self, temporary)

    @classmethod
    def load(cls, path: str | Path, *, mapped: bool = False) -> "Features":
        """Read what `save` wrote, or `x` alone of the same kinds from elsewhere.

        `mapped` leaves x of a .npy or .safetensors file on the disk: a read-only array whose rows are read when used.
        Raises DataError when the file is missing or holds something else.
        """
        path = Path(path)
        if os.path.isdir(path):
            raise DataError(
                f"{path} is a folder; expected an {', '.join(FORMATS)} file that `byol embed` wrote."
            )
        try:
            return cls(*_READERS.get(path.suffix, _read_npz)(path, mapped))
        except FileNotFoundError as failure:
            raise DataError(
                f"There is no file {path}; expected features that `byol embed` wrote."
            ) from failure
        except ByolError as failure:
            raise type(failure)(f"{path} cannot be used as features. {failure}") from failure
        except Exception as failure:  # damaged files end in nearly every exception there is
            raise DataError(
                f"{path} does not hold features ({complaint(failure)}); expected an {', '.join(FORMATS)} file that "
                "`byol embed` wrote."
            ) from failure


def check_labels(y: Array, count: int, classes: tuple[str, ...] | None) -> None:
    """Raise DataError for anything but class numbers from 0, or rows of 0 and 1, for so many images, of the named classes."""
    matrix = y.ndim == 2 and len(y) == count and is_matrix(y)
    if not matrix and (y.shape != (count,) or y.dtype.kind not in "iu" or y.min() < 0):
        raise DataError(
            f"The labels are {y.dtype} of shape {y.shape}; expected the number of a class, from 0, for each of the "
            f"{count} feature rows, or a row of 0 and 1 for each."
        )
    if matrix and classes is not None and y.shape[1] != len(classes):
        raise DataError(f"The labels have {y.shape[1]} columns, but {len(classes)} classes are named.")
    if not matrix and classes is not None and y.max() >= len(classes):
        raise DataError(f"The labels go up to {y.max()}, but {len(classes)} classes are named.")


def check_format(path: Path) -> None:
    """Raise ConfigError for a file name of no kind that features are written in, or whose library is missing."""
    if path.suffix not in FORMATS:
        raise ConfigError(
            f"Features cannot be written to {path.name}; expected a name that ends in {', '.join(FORMATS)}."
        )
    if path.suffix == ".parquet":
        _pyarrow()


def blocks(x: Any) -> Iterator[tuple[int, Any]]:
    """Consecutive rows of an array or tensor (N, D), about BLOCK bytes at a time, each with the number of its first row.

    Of a mapped file only the block at hand is held in memory: what was read is given back to the system.
    """
    mapping, step = _mapping(x), block_rows(x)
    for first in range(0, len(x), step):
        yield first, x[first : first + step]
        if mapping is not None:
            mapping.madvise(mmap.MADV_DONTNEED)


def block_rows(x: Any) -> int:
    """How many rows of an array or tensor (N, D) make a block."""
    return max(1, min(len(x), BLOCK // int(x.itemsize * x.shape[1])))


def _mapping(x: Any) -> mmap.mmap | None:
    """The mapped file behind an array, if it is a read-only one: of others, changes could be lost."""
    while isinstance(x, np.ndarray):
        if isinstance(x, np.memmap) and x.mode != "r":
            return None
        x = x.base
    return x if isinstance(x, mmap.mmap) else None


def check_finite(x: Array, advice: str) -> None:
    """Raise DataError, ending with the advice, when rows (N, D) hold NaN or infinity."""
    bad = [
        first + row
        for first, block in blocks(x)
        for row in np.flatnonzero(~np.isfinite(block).all(axis=1)).tolist()
    ]
    if bad:
        raise DataError(
            f"{len(bad)} of {len(x)} feature rows hold NaN or infinity (the first is row {bad[0]}). {advice}"
        )


def _write_npz(features: Features, path: Path) -> None:
    parts: dict[str, Any] = {"x": features.x, "names": np.array(features.names, dtype=str)}
    if features.y is not None:
        parts["y"] = features.y
    if features.classes is not None:
        parts["classes"] = np.array(features.classes, dtype=str)
    if features.encoder is not None:
        parts["encoder"] = np.array(features.encoder)
    with path.open("wb") as file:
        np.savez(file, **parts)


def _write_npy(features: Features, path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, features.x)


def _write_parquet(features: Features, path: Path) -> None:
    """A row group per block; without dictionaries and compression, which cost time and save 5 % of such numbers."""
    pa, pq = _pyarrow()
    try:
        names = pa.array(features.names, pa.string())
    except UnicodeEncodeError:  # file names that are no UTF-8: their bytes
        names = pa.array([_encoded(name) for name in features.names], pa.binary())
    fields = [("name", names.type)] if features.names else []
    fields += [("label", _label_type(features.y))] if features.y is not None else []
    schema = pa.schema([*fields, ("x", pa.list_(pa.float32(), features.x.shape[1]))])
    schema = schema.with_metadata({"byol": _description(features)})
    with pq.ParquetWriter(path, schema, compression="none", use_dictionary=False) as writer:
        for first, block in blocks(features.x):
            rows = slice(first, first + len(block))
            columns = [names[rows]] if features.names else []
            columns += [pa.array(features.y[rows].tolist(), fields[-1][1])] if features.y is not None else []
            columns += [pa.FixedSizeListArray.from_arrays(pa.array(block.reshape(-1)), block.shape[1])]
            writer.write_table(pa.table(columns, schema=schema))


def _label_type(y: Rows) -> Any:
    pa, _ = _pyarrow()
    return pa.int64() if y.ndim == 1 else pa.list_(pa.int64(), y.shape[1])


def _write_safetensors(features: Features, path: Path) -> None:
    from safetensors.numpy import save_file

    parts: dict[str, Array] = {"x": np.ascontiguousarray(features.x)}
    if features.y is not None:
        parts["y"] = features.y
    if features.names:
        encoded = [_encoded(name) for name in features.names]
        parts["names"] = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        parts["name_ends"] = np.cumsum([len(name) for name in encoded])
    save_file(parts, path, metadata={"byol": _description(features)})


def _read_npz(path: Path, mapped: bool) -> tuple[Any, ...]:
    with path.open("rb") as file:
        start = file.read(6)
        file.seek(0)
        if start == b"\x93NUMPY":
            return (
                np.load(path, mmap_mode="r", allow_pickle=False)
                if mapped
                else np.load(file, allow_pickle=False),
            )
        if not start.startswith(b"PK"):
            raise ValueError("it is not what numpy.save or numpy.savez writes")
        loaded = np.load(file, allow_pickle=False)
        _check_x(loaded)
        names = loaded["names"].tolist() if "names" in loaded else []
        classes = tuple(loaded["classes"].tolist()) if "classes" in loaded else None
        encoder = str(loaded["encoder"]) if "encoder" in loaded else None
        return loaded["x"], loaded.get("y"), names, classes, encoder


def _read_parquet(path: Path, mapped: bool) -> tuple[Any, ...]:
    _, pq = _pyarrow()
    from pyarrow import compute

    held = pq.read_schema(path).names
    _check_x(held)
    table = pq.read_table(path, columns=[n for n in ("name", "label", "x") if n in held])
    x = table["x"].combine_chunks()
    if x.null_count or table["x"].type.num_fields != 1:
        raise DataError(f"Its column x is {x.type} with {x.null_count} nulls; expected lists of numbers.")
    if len(compute.unique(compute.list_value_length(x))) > 1:
        raise DataError("The lists of its column x have several lengths; expected rows of one length.")
    x = x.flatten().to_numpy(zero_copy_only=False).reshape(table.num_rows, -1)
    names = table["name"].to_pylist() if "name" in table.column_names else []
    names = [_decoded(name) if isinstance(name, bytes) else name for name in names]
    y = np.array(table["label"].to_pylist()) if "label" in table.column_names else None
    return x, y, names, *_described((table.schema.metadata or {}).get(b"byol"))


def _read_safetensors(path: Path, mapped: bool) -> tuple[Any, ...]:
    from safetensors import safe_open

    with safe_open(path, "np") as file:
        _check_x(file.keys())
        parts = {key: file.get_tensor(key) for key in file.keys() if not (mapped and key == "x")}  # noqa: SIM118
        description = (file.metadata() or {}).get("byol")
    x = _mapped_tensor(path, "x") if mapped else parts["x"]
    names: list[str] = []
    if "names" in parts:
        text, ends = parts["names"].tobytes(), parts["name_ends"].tolist()
        names = [_decoded(text[start:end]) for start, end in zip([0, *ends], ends, strict=False)]
    return x, parts.get("y"), names, *_described(description)


def _check_x(names: Iterable[str]) -> None:
    """Raise DataError for a file whose arrays do not include the features."""
    held = list(names)
    if "x" not in held:
        more = ", ..." if len(held) > 3 else ""
        raise DataError(
            f"It holds {', '.join(held[:3]) or 'nothing'}{more}; expected x, a row of numbers for each image."
        )


def _mapped_tensor(path: Path, name: str) -> Array:
    """A tensor of a sound safetensors file, left in the file: its place is in the header."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        entry = parse_json(file.read(length))[name]
    kind = {"F16": np.float16, "F32": np.float32, "F64": np.float64}[entry["dtype"]]
    return np.memmap(
        path, kind, "r", offset=8 + length + entry["data_offsets"][0], shape=tuple(entry["shape"])
    )


def _description(features: Features) -> str:
    return json.dumps({"classes": features.classes, "encoder": features.encoder})


def _described(description: str | bytes | None) -> tuple[tuple[str, ...] | None, str | None]:
    """The classes and the encoder in a file's description."""
    held = {} if description is None else parse_json(description)
    classes = held.get("classes")
    return None if classes is None else tuple(classes), held.get("encoder")


def _encoded(name: str) -> bytes:
    return name.encode(errors="surrogateescape")


def _decoded(name: bytes) -> str:
    return name.decode(errors="surrogateescape")


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as failure:
        raise ConfigError("Features in parquet need pyarrow. Run: pip install 'byol[parquet]'") from failure
    return pa, pq


_WRITERS = {
    ".npz": _write_npz,
    ".npy": _write_npy,
    ".parquet": _write_parquet,
    ".safetensors": _write_safetensors,
}
_READERS = {".parquet": _read_parquet, ".safetensors": _read_safetensors}

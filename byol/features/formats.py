"""The files that features are kept in: .npz, .npy, .parquet, .safetensors.

Each holds a seal, a checksum of all that `Features` are, which is compared when it is read. It lies where no
damage to what it is of hides it, and where no other program looks: behind the array of .npy, in the comment
of .npz (a zip archive), before the footer of .parquet, in the metadata of .safetensors.
"""

import hashlib
import json
import os
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from byol.disk import at_once, in_utf8, opened_safetensors, parse_json
from byol.errors import ConfigError, DataError, library
from byol.machine import available_memory

FORMATS = (".npz", ".npy", ".parquet", ".safetensors")
GROUP = 2**24  # bytes of features in a row group of a parquet file
Array = np.ndarray[Any, np.dtype[Any]]
Fields = dict[str, Any]  # of `Features`; those that are empty are left out
DESCRIBED = ("classes", "encoder_checksum")
SPARE = 400 * 2**20  # bytes that a file's arrays may take beyond its own size
WIDTHS = {"FLOAT": 4, "DOUBLE": 8, "INT32": 4, "INT64": 8}  # bytes of a value in parquet, others at least 2
SEAL = b"byol:blake2b:"  # begins a seal; 32 hexadecimal digits follow
ODD = "surrogateescape"  # how names of files that are not UTF-8 are held


def check_format(path: Path) -> None:
    """Raise ConfigError for a suffix that features are not written in, or whose library is missing."""
    if path.suffix not in FORMATS:
        expected = ", ".join(FORMATS)
        raise ConfigError(f"{path} cannot hold features; expected a name that ends in {expected}.")
    if path.suffix == ".parquet":
        library("pyarrow", "parquet", "features in parquet")


def write(fields: Fields, path: Path) -> None:
    """Write a file of the kind that its suffix means."""
    held = {name: value for name, value in fields.items() if value is not None and len(value)}
    held["x"] = np.ascontiguousarray(held["x"])  # in another order a mapped file is read back otherwise
    if path.suffix == ".parquet":
        _write_parquet(held, path)
    elif path.suffix == ".safetensors":
        _write_safetensors(held, path)
    elif path.suffix == ".npy":
        with path.open("wb") as file:
            np.save(file, held["x"])
            file.write(_seal({"x": held["x"]}))
    else:
        arrays: Fields = {name: np.asarray(value) for name, value in held.items()}
        with path.open("wb") as file:
            np.savez(file, **arrays)
        with zipfile.ZipFile(path, "a") as archive:
            archive.comment = _seal(_fields(arrays))


def read(path: Path, *, mapped: bool) -> Fields:
    """What a file holds. Raises DataError, or whatever a library raises of files missing or damaged."""
    with open(path, "rb", opener=at_once) as file:
        start, seal = file.read(6), _bytes_before(file, len(SEAL) + 32)
        if path.suffix == ".parquet":
            fields = _read_parquet(path)
            seal = _bytes_before(file, len(SEAL) + 32, _footer_length(file))
        elif path.suffix == ".safetensors":
            return _read_safetensors(path, mapped)
        elif start == b"\x93NUMPY":
            fields = {"x": np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)}
        elif start.startswith(b"PK"):
            file.seek(0)
            held = np.load(file, allow_pickle=False)
            most = path.stat().st_size + SPARE
            _check(held, sum(member.file_size for member in held.zip.infolist()), most)
            fields, seal = _fields(held), held.zip.comment  # which may be cut short
        else:
            raise ValueError(f"it is of none of the kinds {', '.join(FORMATS)}")
    if seal.startswith(SEAL) and seal != _seal(fields):
        raise ValueError("it does not match its checksum")
    return fields


def _fields(held: Mapping[str, Array]) -> Fields:
    """What the arrays of a .npz file say."""
    fields: Fields = {name: held[name] for name in ("x", "y") if name in held}
    fields |= {"names": held["names"].tolist()} if "names" in held else {}
    return fields | _described({name: held[name].tolist() for name in DESCRIBED if name in held})


def _write_parquet(fields: Fields, path: Path) -> None:
    """Without dictionaries and compression, which cost time and save 5 % of such numbers."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {}
    if "names" in fields:
        try:
            columns["name"] = pa.array(fields["names"], pa.string())
        except UnicodeEncodeError:  # file names that are not UTF-8: their bytes
            columns["name"] = pa.array([name.encode(errors=ODD) for name in fields["names"]], pa.binary())
    for column, field in (("label", "y"), ("x", "x")):
        if field in fields:
            values = fields[field]
            flat = pa.array(np.ascontiguousarray(values).reshape(-1))
            rows = values.ndim == 2
            columns[column] = pa.FixedSizeListArray.from_arrays(flat, values.shape[1]) if rows else flat
    table = pa.table(columns).replace_schema_metadata({"byol": _description(fields)})
    size = max(1, GROUP // (4 * fields["x"].shape[1]))
    how = {"compression": "none", "use_dictionary": False, "write_page_checksum": True}
    with path.open("wb") as file:
        pq.write_table(table, file, row_group_size=size, **how)
    with path.open("r+b") as file:  # nothing in the footer guards the footer itself
        footer = _bytes_before(file, _footer_length(file))
        file.seek(-len(footer), os.SEEK_END)
        file.write(_seal(fields) + footer)


def _read_parquet(path: Path) -> Fields:
    check_format(path)
    import pyarrow.parquet as pq
    from pyarrow import compute, types

    with in_utf8(path) as named:
        schema = pq.read_schema(named)
    names = schema.names
    if "x" in names:
        kind = schema.field("x").type
        each = kind.value_type if hasattr(kind, "value_type") else kind
        if each is kind or not (types.is_floating(each) or types.is_integer(each)):
            raise DataError(f"Its column x is of {kind}; expected lists of numbers, all of one length.")
    held = [name for name in ("name", "label", "x") if name in names]
    how = {"read_dictionary": held[: held.count("name")], "page_checksum_verification": True}
    with in_utf8(path) as named, pq.ParquetFile(named, **how) as file:
        groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
        most = path.stat().st_size + SPARE // 4  # what is read is there several times for a while
        _check(names, sum(group.total_byte_size for group in groups), most)
        for number in range(len(groups)):  # `column` would end the process where this raises
            next(file.iter_batches(1, row_groups=[number], columns=held), None)
        columns = [group.column(place) for group in groups for place in range(group.num_columns)]
        columns = [c for c in columns if c.path_in_schema.split(".")[0] in held]
        _check(names, sum(WIDTHS.get(c.physical_type, 2) * c.num_values for c in columns), most)
        table = file.read(held)
    x = table["x"].combine_chunks()
    if x.null_count or len(compute.unique(compute.list_value_length(x))) > 1:
        raise DataError(
            "The lists of its column x have nulls or several lengths; expected rows of one length."
        )
    fields = {"x": x.flatten().to_numpy(zero_copy_only=False).reshape(table.num_rows, -1)}
    if "name" in held:  # a dictionary: long names that many rows share are made once
        column = table["name"].unify_dictionaries().combine_chunks()
        words = [w.decode(errors=ODD) if isinstance(w, bytes) else w for w in column.dictionary.to_pylist()]
        fields["names"] = [words[place] for place in column.indices.to_pylist()]
    if "label" in held:
        fields["y"] = np.array(table["label"].to_pylist())
    return fields | _described(parse_json((table.schema.metadata or {}).get(b"byol", "{}")))


def _write_safetensors(fields: Fields, path: Path) -> None:
    from safetensors.numpy import save_file

    parts: dict[str, Array] = {n: np.ascontiguousarray(fields[n]) for n in ("x", "y") if n in fields}
    if "names" in fields:
        encoded = [name.encode(errors=ODD) for name in fields["names"]]
        parts["names"] = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        parts["name_ends"] = np.cumsum([len(name) for name in encoded])
    save_file(parts, path, metadata={"byol": _description(fields), "seal": _seal(fields).decode()})


def _read_safetensors(path: Path, mapped: bool) -> Fields:
    with opened_safetensors(path, "np") as file:
        held, metadata = sorted(file.keys()), file.metadata() or {}
        _check(held)
        parts = {name: file.get_tensor(name) for name in held if name != "x" or not mapped}
        parts |= {"x": _mapped_tensor(path, "x")} if mapped else {}
        fields: Fields = {name: parts[name] for name in ("x", "y") if name in parts}
        if "names" in held:
            text, ends = parts["names"].tobytes(), parts["name_ends"].tolist()
            if ends != sorted(ends):  # each name could be all of the text
                raise DataError("The ends of its names do not rise.")
            starts = [0, *ends[:-1]]
            fields["names"] = [text[s:e].decode(errors=ODD) for s, e in zip(starts, ends, strict=True)]
        fields |= _described(parse_json(metadata.get("byol", "{}")))
        if "seal" in metadata and metadata["seal"].encode() != _seal(fields):
            raise ValueError("it does not match its checksum")
        return fields


def _seal(fields: Fields) -> bytes:
    """A checksum of everything in the fields of features, whatever file they are in."""
    arrays = {name: fields[name] for name in ("x", "y") if name in fields}
    said: Fields = {name: (array.dtype.str, array.shape) for name, array in arrays.items()}
    text = json.dumps({**fields, **said}, sort_keys=True)
    digest = hashlib.blake2b(text.encode(), digest_size=16)
    for array in arrays.values():
        if not isinstance(array, np.memmap) or array.filename is None:
            digest.update(np.ascontiguousarray(array).data)
            continue
        with open(array.filename, "rb") as file:  # not by the map: what is touched there stays in memory
            file.seek(array.offset)
            for first in range(0, array.nbytes, GROUP):
                digest.update(file.read(min(GROUP, array.nbytes - first)))
    return SEAL + digest.hexdigest().encode()


def _footer_length(file: BinaryIO) -> int:
    """Of a parquet file, with the bytes that say so."""
    return int.from_bytes(_bytes_before(file, 4, 4), "little") + 8


def _bytes_before(file: BinaryIO, count: int, behind: int = 0) -> bytes:
    """So many bytes of a file, which so many others are behind."""
    file.seek(max(0, file.seek(0, os.SEEK_END) - behind - count))
    return file.read(count)


def _mapped_tensor(path: Path, name: str) -> Array:
    """A tensor of a sound safetensors file, left in the file: its place is in the header."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        entry = parse_json(file.read(length))[name]
    kinds = {"F16": np.float16, "F32": np.float32, "F64": np.float64}
    if entry["dtype"] not in kinds:
        raise DataError(f"Its {name} is {entry['dtype']}; expected one of {', '.join(kinds)}.")
    start = 8 + length + entry["data_offsets"][0]
    return np.memmap(path, kinds[entry["dtype"]], "r", offset=start, shape=tuple(entry["shape"]))


def _check(names: Iterable[str], needed: int = 0, most: int = 0) -> None:
    """Raise DataError for a file without features, or with more than fits or than its size tells."""
    held, free = list(names), available_memory()
    if "x" not in held:
        some = ", ".join(held[:3] + ["..."] * (len(held) > 3)) or "nothing"
        raise DataError(f"It holds {some}; expected x, a row for each image.")
    if needed > free:
        raise DataError(
            f"It holds {needed / 2**30:,.1f} GiB, and {free / 2**30:,.1f} GiB of memory are free. Expected "
            "fewer rows, or a .npy or .safetensors file, of which a part is in memory at a time."
        )
    if needed > most:
        raise DataError(
            f"It holds {needed / 2**20:,.0f} MiB; of a file of its size at most {most / 2**20:,.0f} MiB are "
            "believed. Expected one without compression, as `byol embed` writes it."
        )


def _description(fields: Fields) -> str:
    return json.dumps({name: fields[name] for name in DESCRIBED if name in fields})


def _described(held: Fields) -> Fields:
    """What a file says of the images and the encoder."""
    fields = {
        "classes": tuple(held.get("classes") or ()),
        "encoder_checksum": held.get("encoder_checksum"),
    }
    return {name: value for name, value in fields.items() if value}

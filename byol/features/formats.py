"""The files that features are kept in: .npz, .npy, .parquet, .safetensors."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from byol.disk import parse_json
from byol.errors import ConfigError, DataError
from byol.machine import available_memory

FORMATS = (".npz", ".npy", ".parquet", ".safetensors")
GROUP = 2**24  # bytes of features in a row group of a parquet file
Array = np.ndarray[Any, np.dtype[Any]]
Fields = dict[str, Any]  # of `Features`; those that are empty are left out
ODD = "surrogateescape"  # how names of files that are not UTF-8 are held
DESCRIBED = ("classes", "encoder", "encoder_checksum")  # `encoder` in files of before


def check_format(path: Path) -> None:
    """Raise ConfigError for a suffix that features are not written in, or whose library is missing."""
    if path.suffix not in FORMATS:
        raise ConfigError(
            f"{path.name} cannot hold features; expected a name that ends in {', '.join(FORMATS)}."
        )
    if path.suffix == ".parquet":
        _pyarrow()


def write(fields: Fields, suffix: str, path: Path) -> None:
    """Write a file of the kind that a suffix means."""
    held = {name: value for name, value in fields.items() if value is not None and len(value)}
    if suffix == ".parquet":
        _write_parquet(held, path)
    elif suffix == ".safetensors":
        _write_safetensors(held, path)
    else:
        with path.open("wb") as file:
            if suffix == ".npy":
                np.save(file, held["x"])
            else:
                np.savez(file, **held)


def read(path: Path, *, mapped: bool) -> Fields:
    """What a file holds. Raises DataError, or whatever a library raises of files missing or damaged."""
    with path.open("rb") as file:
        start = file.read(6)
    if path.suffix == ".parquet":
        return _read_parquet(path)
    if path.suffix == ".safetensors":
        return _read_safetensors(path, mapped)
    if start == b"\x93NUMPY":
        return {"x": np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)}
    if not start.startswith(b"PK"):
        raise ValueError(f"it is of none of the kinds {', '.join(FORMATS)}")
    with path.open("rb") as file:
        loaded = np.load(file, allow_pickle=False)
        _check(loaded, sum(member.file_size for member in loaded.zip.infolist()))
        fields = {name: loaded[name] for name in ("x", "y") if name in loaded}
        fields |= {name: loaded[name].tolist() for name in ("names", *DESCRIBED) if name in loaded}
    return _renamed(fields)


def _write_parquet(fields: Fields, path: Path) -> None:
    """Without dictionaries and compression, which cost time and save 5 % of such numbers."""
    pa, pq = _pyarrow()
    columns = {}
    if "names" in fields:
        try:
            columns["name"] = pa.array(fields["names"], pa.string())
        except UnicodeEncodeError:  # file names that are not UTF-8: their bytes
            encoded = [name.encode(errors=ODD) for name in fields["names"]]
            columns["name"] = pa.array(encoded, pa.binary())
    for column, field in (("label", "y"), ("x", "x")):
        if field in fields:
            values = fields[field]
            flat = pa.array(np.ascontiguousarray(values).reshape(-1))
            several = values.ndim == 2
            columns[column] = pa.FixedSizeListArray.from_arrays(flat, values.shape[1]) if several else flat
    table = pa.table(columns).replace_schema_metadata({"byol": _description(fields)})
    rows = max(1, GROUP // (4 * fields["x"].shape[1]))
    pq.write_table(table, path, row_group_size=rows, compression="none", use_dictionary=False)


def _read_parquet(path: Path) -> Fields:
    _, pq = _pyarrow()
    from pyarrow import compute

    names = pq.read_schema(path).names
    held = [name for name in ("name", "label", "x") if name in names]
    with pq.ParquetFile(path, read_dictionary=held[: held.count("name")]) as file:
        groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
        columns = [group.column(place) for group in groups for place in range(group.num_columns)]
        values = sum(c.num_values for c in columns if c.path_in_schema.split(".")[0] in held)
        _check(names, 8 * values)
        table = file.read(held)
    x = table["x"].combine_chunks()
    if x.null_count or x.type.num_fields != 1:
        raise DataError(f"Its column x is {x.type} with {x.null_count} nulls; expected lists of numbers.")
    if len(compute.unique(compute.list_value_length(x))) > 1:
        raise DataError("The lists of its column x have several lengths; expected rows of one length.")
    fields = {"x": x.flatten().to_numpy(zero_copy_only=False).reshape(table.num_rows, -1)}
    if "name" in held:  # a dictionary: long names that many rows share are made once
        column = table["name"].unify_dictionaries().combine_chunks()
        different = column.dictionary.to_pylist()
        different = [one.decode(errors=ODD) if isinstance(one, bytes) else one for one in different]
        fields["names"] = [different[place] for place in column.indices.to_pylist()]
    if "label" in held:
        fields["y"] = np.array(table["label"].to_pylist())
    return fields | _described((table.schema.metadata or {}).get(b"byol"))


def _write_safetensors(fields: Fields, path: Path) -> None:
    from safetensors.numpy import save_file

    parts: dict[str, Array] = {n: np.ascontiguousarray(fields[n]) for n in ("x", "y") if n in fields}
    if "names" in fields:
        encoded = [name.encode(errors=ODD) for name in fields["names"]]
        parts["names"] = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        parts["name_ends"] = np.cumsum([len(name) for name in encoded])
    save_file(parts, path, metadata={"byol": _description(fields)})


def _read_safetensors(path: Path, mapped: bool) -> Fields:
    from safetensors import safe_open

    with safe_open(path, "np") as file:
        held = list(file.keys())
        _check(held)
        fields = {name: file.get_tensor(name) for name in held if name == "y" or (name == "x" and not mapped)}
        if "names" in held:
            text, ends = file.get_tensor("names").tobytes(), file.get_tensor("name_ends").tolist()
            if ends != sorted(ends):  # each name could be all of the text
                raise DataError("The ends of its names do not rise.")
            starts = [0, *ends[:-1]]
            fields["names"] = [text[s:e].decode(errors=ODD) for s, e in zip(starts, ends, strict=True)]
        fields |= _described((file.metadata() or {}).get("byol"))
    return {"x": _mapped_tensor(path, "x"), **fields} if mapped else fields


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


def _check(names: Iterable[str], needed: int = 0) -> None:
    """Raise DataError for a file without features, or one, of any size itself, that holds more than fits."""
    held, free = list(names), available_memory()
    if "x" not in held:
        some = ", ".join(held[:3] + ["..."] * (len(held) > 3)) or "nothing"
        raise DataError(f"It holds {some}; expected x, a row for each image.")
    if needed > free:
        raise DataError(
            f"It holds {needed / 2**30:,.1f} GiB, and {free / 2**30:,.1f} GiB of memory are free. Expected "
            "fewer rows, or a .npy or .safetensors file, of which a part is in memory at a time."
        )


def _description(fields: Fields) -> str:
    return json.dumps({name: fields[name] for name in DESCRIBED if name in fields})


def _described(description: str | bytes | None) -> Fields:
    held = {} if description is None else parse_json(description)
    return _renamed({name: held[name] for name in DESCRIBED if held.get(name)})


def _renamed(fields: Fields) -> Fields:
    if "encoder" in fields:
        fields["encoder_checksum"] = fields.pop("encoder")
    return fields | ({"classes": tuple(fields["classes"])} if "classes" in fields else {})


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as failure:
        raise ConfigError("Features in parquet need pyarrow. Run: pip install 'byol[parquet]'") from failure
    return pa, pq

"""Features in memory, and in files of four kinds."""

import json
import os
import pickle
import resource
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from full_disk import largest_file
from safetensors.numpy import load_file, save_file

from byol.errors import ConfigError, DataError, DiskError
from byol.features import features as files
from byol.features.features import Features
from byol.features.formats import FORMATS


def features(count: int = 5, width: int = 3, **others: object) -> Features:
    return Features(np.random.default_rng(0).normal(size=(count, width)), **others)


# Features in memory


def test_other_kinds_of_numbers_are_taken():
    found = Features(np.eye(3), np.array([2, 0, 1], dtype=np.uint8))
    assert (found.x.dtype, found.y.dtype) == (np.float32, np.int64)
    found = Features(torch.eye(3), torch.tensor([2, 0, 1]))
    assert (found.x.dtype, found.y.tolist()) == (np.float32, [2, 0, 1])
    own = np.eye(3, dtype=np.float32)
    assert Features(own).x is own


@pytest.mark.parametrize(
    ("x", "others", "message"),
    [(np.zeros(4), {}, r"shape \(4,\); expected \(N, D\)"),
     (np.zeros((4, 3, 2)), {}, r"shape \(4, 3, 2\)"),
     (np.zeros((0, 3)), {}, r"shape \(0, 3\)"),
     (np.zeros((3, 0)), {}, r"shape \(3, 0\)"),
     (np.array([[1, 2], [np.nan, 1], [np.inf, np.nan]]), {}, r"2 of 3 feature rows .*first is row 1"),
     (np.eye(3), {"y": np.arange(2)}, r"labels are int64 of shape \(2,\).*each of the 3 feature rows"),
     (np.eye(3), {"y": np.arange(3)[:, None]}, r"labels are int64 of shape \(3, 1\)"),
     (np.eye(3), {"y": np.arange(3.0)}, r"labels are float64 of shape \(3,\)"),
     (np.eye(3), {"y": np.array(["a", "b", "c"])}, r"labels are <U1"),
     (np.eye(3), {"y": np.array([0, -1, 2])}, "from 0 and below"),
     (np.eye(3), {"y": np.arange(3), "classes": ("a", "b")}, "labels are of 3 classes, but 2 "),
     (np.eye(3), {"y": np.eye(3) * 2}, r"labels are float64 of shape \(3, 3\)"),
     (np.eye(3), {"y": np.eye(3), "classes": ("a", "b")}, "labels are of 3 classes, but 2 classes are named"),
     (np.eye(3), {"names": ["a"]}, "1 names for 3 rows")],
)  # fmt: skip
def test_refuses_what_cannot_be_features(x, others, message):
    with pytest.raises(DataError, match=message):
        Features(x, **others)


# Features in a file

KINDS = (".npz", ".parquet", ".safetensors")
ODD = [
    "a b/c.png",
    "ümläut.png",
    "猫🐈.png",
    "line\nend.png",
    os.fsdecode(b"\xff\xfe.png"),
    "",
    " ",
    "a,b;c\t'\"\\",
    "x" * 999,
]


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "others",
    [{}, {"y": np.array([0, 2, 1, 0, 2])}, {"names": list("abcde")}, {"y": np.eye(5, 3)},
     {"y": np.array([0, 1, 1, 0, 1]), "classes": ("a b", "ümläut 猫 🐈", "unseen"), "names": list("abcde")}],
    ids=["x", "labels", "names", "multi-label", "all"],
)  # fmt: skip
def test_what_was_saved_is_loaded(tmp_path, others, kind, mapped):
    saved, path = features(**others), tmp_path / f"features{kind}"
    saved.save(path)
    loaded = Features.load(str(path), mapped=mapped)
    assert np.array_equal(loaded.x, saved.x)
    assert loaded.x.dtype == np.float32
    assert loaded.names == saved.names
    assert loaded.classes == saved.classes
    assert (loaded.y is None) == (saved.y is None)
    assert saved.y is None or (np.array_equal(loaded.y, saved.y) and loaded.y.dtype == np.int64)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "names", [ODD, [name for name in ODD if name.isascii() or "\udcff" not in name]], ids=["bytes", "utf-8"]
)
def test_names_with_odd_characters_are_kept(tmp_path, kind, names):
    features(len(names), names=names).save(tmp_path / f"features{kind}")
    assert Features.load(tmp_path / f"features{kind}").names == names


@pytest.mark.parametrize("kind", KINDS)
def test_many_blocks_are_written_and_read_in_order(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(files, "BLOCK", 4 * 3 * 7)  # seven rows
    saved = features(50, y=np.arange(50), names=[str(number) for number in range(50)])
    saved.save(tmp_path / f"features{kind}")
    loaded = Features.load(tmp_path / f"features{kind}", mapped=True)
    assert np.array_equal(loaded.x, saved.x)
    assert (loaded.y.tolist(), loaded.names) == (saved.y.tolist(), saved.names)


def test_npy_holds_the_features_alone(tmp_path):
    saved = features(y=np.arange(5), names=list("abcde"))
    saved.save(tmp_path / "features.npy")
    assert np.array_equal(np.load(tmp_path / "features.npy"), saved.x)
    loaded = Features.load(tmp_path / "features.npy")
    assert np.array_equal(loaded.x, saved.x)
    assert (loaded.y, loaded.names, loaded.classes) == (None, [], None)


def test_npz_can_be_read_with_numpy_alone(tmp_path):
    features(y=np.arange(5), names=list("abcde"), classes=tuple("vwxyz")).save(tmp_path / "features.npz")
    with np.load(tmp_path / "features.npz", allow_pickle=False) as file:
        assert set(file) == {"x", "y", "names", "classes"}
        assert (file["x"].shape, file["names"].tolist()) == ((5, 3), list("abcde"))


def test_parquet_can_be_read_with_pyarrow_alone(tmp_path):
    saved = features(y=np.arange(5), names=list("abcde"))
    saved.save(tmp_path / "features.parquet")
    table = pq.read_table(tmp_path / "features.parquet")
    assert {field.name: str(field.type) for field in table.schema} == {
        "name": "string", "label": "int64", "x": "fixed_size_list<element: float>[3]"
    }  # fmt: skip
    assert table["name"].to_pylist() == saved.names
    assert table["label"].to_pylist() == saved.y.tolist()
    np.testing.assert_array_equal(np.array(table["x"].to_pylist(), dtype=np.float32), saved.x)


def test_safetensors_can_be_read_with_its_library_alone(tmp_path):
    saved = features(3, y=np.arange(3), names=["a", "", "猫"])
    saved.save(tmp_path / "features.safetensors")
    tensors = load_file(tmp_path / "features.safetensors")
    np.testing.assert_array_equal(tensors["x"], saved.x)
    assert tensors["y"].tolist() == [0, 1, 2]
    text, ends = tensors["names"].tobytes(), tensors["name_ends"].tolist()
    assert [text[start:end].decode() for start, end in zip([0, *ends[:-1]], ends, strict=True)] == saved.names


def test_files_of_other_programs_need_only_x(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.eye(3), y=np.arange(3, dtype=np.int32))
    save_file({"x": np.eye(3), "other": np.arange(9)}, tmp_path / "a.safetensors")
    pq.write_table(pa.table({"x": np.eye(3).tolist(), "other": [1, 2, 3]}), tmp_path / "a.parquet")
    for kind in KINDS:
        loaded = Features.load(tmp_path / f"a{kind}", mapped=True)
        assert (loaded.x.dtype, loaded.x.tolist(), loaded.names) == (np.float32, np.eye(3).tolist(), [])
    assert Features.load(tmp_path / "a.npz").y.tolist() == [0, 1, 2]


MEMORY = """
import sys, threading, time
import numpy as np
from byol.features.features import Features
def status(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name)) * 1024
features = Features(np.zeros((2, 2)))  # everything is imported
before, peak, done = status("VmRSS"), 0, False
def watch():
    global peak
    while not done:
        peak = max(peak, status("VmRSS"))
        time.sleep(0.001)
watcher = threading.Thread(target=watch)
watcher.start()
for path in sys.argv[1:]:
    features = Features.load(path, mapped=True)
done = True
watcher.join()
print(features.x.shape, (peak - before) / features.x.nbytes)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="no other system tells of its pages")
@pytest.mark.slow
def test_mapped_features_are_never_in_memory_as_a_whole(tmp_path):
    """Not even while they are looked through for NaN; the file's pages that the process holds count."""
    files = [str(tmp_path / "a.npy"), str(tmp_path / "a.safetensors")]
    for path in files:
        features(100_000, 400).save(path)  # 160 MB
    command = [sys.executable, "-c", MEMORY, *files]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    shape, share = done.stdout.rsplit(maxsplit=1)
    assert shape == "(100000, 400)"
    assert float(share) < 0.3


def test_mapped_features_cannot_be_written_to(tmp_path):
    features().save(tmp_path / "a.npy")
    loaded = Features.load(tmp_path / "a.npy", mapped=True)
    with pytest.raises(ValueError, match="read-only"):
        loaded.x[0] = 1


def test_changes_of_a_mapping_of_your_own_are_kept(tmp_path):
    """Pages are given back to the system only of read-only mappings: others could lose what was written."""
    np.save(tmp_path / "a.npy", np.ones((4, 3), dtype=np.float32))
    for mode in ("c", "r+"):
        own = np.load(tmp_path / "a.npy", mmap_mode=mode)
        own[1] = 7
        assert Features(own).x[1].tolist() == [7, 7, 7]
        assert own[1].tolist() == [7, 7, 7]


def test_saving_replaces_the_file_as_a_whole(tmp_path):
    paths = [tmp_path / f"features{kind}" for kind in (*KINDS, ".npy")]
    for path in paths:
        features().save(path)
    old = {path: path.read_bytes() for path in paths}
    large = Features(np.ones((100_000, 10)), names=["a"] * 100_000)
    for path in paths:
        with largest_file(1_000_000), pytest.raises(DiskError) as failure:
            large.save(path)
        assert failure.value.filename == str(path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == old


def test_another_kind_of_file_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ConfigError, match=r"a\.csv .*expected a name that ends in \.npz"):
        features().save(tmp_path / "a.csv")
    assert not list(tmp_path.iterdir())


class Canary:
    """Pickled, it makes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("kind", ["names", "x", "y", "classes", "npy", "pickle"])
def test_pickle_is_never_executed(tmp_path, kind):
    path, objects = tmp_path / "features.npz", np.array([Canary(tmp_path / "executed")] * 3, dtype=object)
    if kind == "pickle":
        path.write_bytes(pickle.dumps(objects))
    elif kind == "npy":
        np.save(path.with_suffix(".npy"), objects, allow_pickle=True)
        path = path.with_suffix(".npy")
    else:
        np.savez(path, allow_pickle=True, **{"x": np.eye(3), "names": list("abc"), kind: objects})
    for mapped in (False, True):
        with pytest.raises(DataError, match="does not hold features"):
            Features.load(path, mapped=mapped)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_damaged_file_is_refused_by_name(tmp_path, kind, mapped):
    path = tmp_path / f"features{kind}"
    features(50, names=[str(number) for number in range(50)]).save(path)
    sound = path.read_bytes()
    for share in (0, 0.01, 0.5, 0.99):
        path.write_bytes(sound[: int(share * len(sound))])
        with pytest.raises(DataError, match=rf"features\{kind} does not hold features"):
            Features.load(path, mapped=mapped)


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("kind", FORMATS)
def test_a_flipped_bit_is_noticed(tmp_path, kind, mapped):
    path = tmp_path / f"features{kind}"
    features(50).save(path)
    sound = path.read_bytes()
    place = sound.index(features(50).x[20:22].tobytes()[:8])  # among the numbers of x
    path.write_bytes(sound[:place] + bytes([sound[place] ^ 16]) + sound[place + 1 :])
    with pytest.raises(DataError, match=rf"features\{kind} does not hold features"):
        Features.load(path, mapped=mapped)


@pytest.mark.parametrize(
    ("kind", "every"), [(".npy", 3), (".safetensors", 5), (".npz", 17), (".parquet", 31)]
)  # bits
def test_whatever_bit_is_flipped_the_features_are_as_saved_or_refused(tmp_path, kind, every):
    """Of names, labels, shapes, types and what lists them too, not of the numbers alone."""
    path, described = tmp_path / f"features{kind}", {"classes": ("ant", "bee"), "encoder_checksum": "00ff"}
    features(4, 2, y=np.array([0, 1, 1, 0]), names=list("abcd"), **described).save(path)
    whole, outcomes = path.read_bytes(), {True: 0, False: 0}
    wanted = Features.load(path)
    for bit in range(0, 8 * len(whole), every):
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        try:
            loaded = Features.load(path)
        except DataError:
            outcomes[False] += 1
            continue
        outcomes[True] += 1
        assert vars(loaded).keys() == vars(wanted).keys()
        for name, value in vars(wanted).items():
            assert np.array_equal(getattr(loaded, name), value), (bit, name)
    assert all(outcomes.values())


@pytest.mark.parametrize("dtype", [">f4", "<i4"])
@pytest.mark.parametrize("mapped", [False, True])
def test_numbers_of_another_type_in_a_npy_are_noticed(tmp_path, dtype, mapped):
    path = tmp_path / "features.npy"
    Features(np.full((3, 2), 2.0)).save(path)  # finite, whichever way they are read
    path.write_bytes(path.read_bytes().replace(b"<f4", dtype.encode()))
    with pytest.raises(DataError, match="checksum"):
        Features.load(path, mapped=mapped)


@pytest.mark.parametrize("kind", FORMATS)
def test_columns_that_lie_one_behind_the_other_are_read_back_mapped(tmp_path, kind):
    saved = Features(np.asfortranarray(features().x))
    saved.save(tmp_path / f"f{kind}")
    for mapped in (False, True):
        assert np.array_equal(Features.load(tmp_path / f"f{kind}", mapped=mapped).x, saved.x)


def test_a_parquet_of_another_program_is_checked_by_the_checksums_of_its_pages(tmp_path):
    x, path = features(50).x, tmp_path / "features.parquet"
    values = pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), x.shape[1])
    how = {"compression": "none", "use_dictionary": False, "write_page_checksum": True}
    pq.write_table(pa.table({"x": values}), path, **how)
    assert np.array_equal(Features.load(path).x, x)
    sound = path.read_bytes()
    place = sound.index(x[20].tobytes()[:8])
    path.write_bytes(sound[:place] + bytes([sound[place] ^ 16]) + sound[place + 1 :])
    with pytest.raises(DataError, match=r"features\.parquet does not hold features"):
        Features.load(path)


@pytest.mark.parametrize("kind", [".npy", ".safetensors"])
def test_a_file_of_another_program_needs_no_checksum(tmp_path, kind):
    path, x = tmp_path / f"features{kind}", features(50).x
    np.save(path, x) if kind == ".npy" else save_file({"x": x}, path)
    assert np.array_equal(Features.load(path).x, x)


def test_numpy_reads_a_npy_with_a_checksum_behind_the_array(tmp_path):
    features(50).save(tmp_path / "features.npy")
    for mode in (None, "r"):
        assert np.array_equal(np.load(tmp_path / "features.npy", mmap_mode=mode), features(50).x)


@pytest.mark.parametrize(
    ("content", "message"),
    [({"images": np.zeros((3, 4, 4, 3))}, r"cannot be used as features\. It holds images; expected x"),
     ({}, r"cannot be used as features\. It holds nothing; expected x"),
     ({"x": np.array([[1, np.nan]])}, r"cannot be used as features\. 1 of 1 feature rows hold NaN"),
     ({"x": np.zeros(3)}, r"cannot be used as features\. Features have shape \(3,\)"),
     ({"x": np.array(["a"])}, r"cannot be used as features\. The features are not a matrix of numbers")],
)  # fmt: skip
def test_npz_of_something_else_is_refused_by_name(tmp_path, content, message):
    np.savez(tmp_path / "a.npz", **content)
    with pytest.raises(DataError, match=rf"a\.npz {message}"):
        Features.load(tmp_path / "a.npz")


@pytest.mark.parametrize(
    "column", [[[1.0], [1.0, 2.0]], [[1.0], None], ["a", "b"], [1.0, 2.0], [[[1.0]], [[2.0]]]]
)
def test_parquet_of_something_else_is_refused_by_name(tmp_path, column):
    pq.write_table(pa.table({"x": column}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet (does not hold|cannot be used as) features"):
        Features.load(tmp_path / "a.parquet")


def test_safetensors_of_an_encoder_are_told(tmp_path):
    save_file({"conv.weight": np.eye(3)}, tmp_path / "a.safetensors")
    for mapped in (False, True):
        with pytest.raises(
            DataError, match=r"a\.safetensors cannot be used as features\. It holds conv\.weight; expected x"
        ):
            Features.load(tmp_path / "a.safetensors", mapped=mapped)


def test_parquet_without_features_is_told(tmp_path):
    pq.write_table(pa.table({"name": ["a"], "label": [0]}), tmp_path / "a.parquet")
    with pytest.raises(
        DataError, match=r"a\.parquet cannot be used as features\. It holds name, label; expected x"
    ):
        Features.load(tmp_path / "a.parquet")


def test_missing_file_and_folder_are_told(tmp_path):
    with pytest.raises(DataError, match=rf"{tmp_path} .*\(Is a directory\)"):
        Features.load(tmp_path)
    for kind in (*KINDS, ".npy"):
        with pytest.raises(DataError, match=rf"nothing\{kind} .*\(No such file or directory\)"):
            Features.load(tmp_path / f"nothing{kind}")


def test_missing_folders_are_made(tmp_path):
    features().save(tmp_path / "a" / "b" / "f.npz")
    assert Features.load(tmp_path / "a" / "b" / "f.npz").x.shape == (5, 3)


def test_features_show_themselves_in_a_line():
    assert repr(Features(np.zeros((1200, 3)))) == "<Features 1,200 x 3>"
    assert "2 classes" in repr(Features(np.eye(2), y=np.array([0, 1]), classes=("a", "b")))
    assert len(repr(Features(np.zeros((1200, 300)), names=["a" * 99] * 1200))) < 80


# Hostile files


def claiming(path: Path, size: int) -> None:
    """An .npz whose directory claims so many bytes of x."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("x.npy", "w") as file:
            np.lib.format.write_array(file, np.zeros((1000, 1000), dtype=np.float32))
        archive.infolist()[0].file_size = size


def with_header(path: Path, header: dict[str, object], body: bytes = b"") -> None:
    """A .safetensors file."""
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)


X = {"x": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}
DEEP = "[" * 100_000


def hostile(name: str, path: Path) -> None:
    """Write a file that means harm."""
    if name.startswith("header"):  # of 4 GB, or an endless tuple
        length, text = (2**32 - 1, b"{") if name == "header.npy" else (60_000, b"(" * 60_000)
        path.write_bytes(b"\x93NUMPY\x02\x00" + length.to_bytes(4, "little") + text)
    elif name.startswith("shape"):
        shape = {"shape.npy": (10**12, 1000), "shape-.npy": (-1, 1000)}[name]
        text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
        path.write_bytes(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(4000))
    elif name == "bomb.npz":
        claiming(path, 2**60)
    elif name == "zeros.npz":
        archive = zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1)
        with archive, archive.open("x.npy", "w") as file:
            header = {"descr": "<f4", "fortran_order": False, "shape": (450 * 2**10, 2**8)}
            np.lib.format.write_array_header_1_0(file, header)
            for _ in range(450):
                file.write(bytes(2**20))
    elif name == "zeros.parquet":
        table = pa.table({"x": pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(2**22, "f4")), 2**10)})
        with pq.ParquetWriter(path, table.schema) as writer:
            for _ in range(16):  # 256 MiB
                writer.write_table(table)
    elif name == "nested.safetensors":
        path.write_bytes(len(DEEP).to_bytes(8, "little") + DEEP.encode())
    elif name == "description.safetensors":
        with_header(path, {**X, "__metadata__": {"byol": DEEP}}, bytes(16))
    elif name == "length.safetensors":
        path.write_bytes((2**62).to_bytes(8, "little") + b"{}")
    elif name == "ends.safetensors":  # each second name is all of the text
        count, text = 100_000, b"a" * 10_000_000
        ends = np.tile([len(text), 0], count // 2).astype(np.int64)
        places = np.cumsum([0, 4 * count, len(text), 8 * count]).tolist()
        shapes = {"x": ("F32", [count, 1]), "names": ("U8", [len(text)]), "name_ends": ("I64", [count])}
        entries = {
            name: {"dtype": dtype, "shape": shape, "data_offsets": places[number : number + 2]}
            for number, (name, (dtype, shape)) in enumerate(shapes.items())
        }
        with_header(path, entries, bytes(4 * count) + text + ends.tobytes())
    elif name == "description.parquet":
        pq.write_table(pa.table({"x": [[1.0, 2.0]]}).replace_schema_metadata({"byol": DEEP}), path)


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize(
    "name",
    ["header.npy", "header2.npy", "shape.npy", "shape-.npy", "bomb.npz", "nested.safetensors",
     "description.safetensors", "length.safetensors", "ends.safetensors", "description.parquet",
     "zeros.npz", "zeros.parquet"],
)  # fmt: skip
def test_hostile_files_are_a_sentence_soon(tmp_path, name, mapped):
    hostile(name, tmp_path / name)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match=name) as told:
        Features.load(tmp_path / name, mapped=mapped)
    assert "\n" not in str(told.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kilobytes


@pytest.mark.parametrize("x", [[1.0], [[[1.0, 2.0]]], [["a"]], [[True]], [{"a": 1.0}]], ids=str)
def test_a_column_that_is_no_list_of_numbers_is_a_sentence(tmp_path, x):
    """Whatever numpy makes of it: from a list of lists some versions make numbers."""
    pq.write_table(pa.table({"x": x}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet .*[iI]ts column x is of .*; expected lists of numbers"):
        Features.load(tmp_path / "a.parquet")


def test_a_small_parquet_file_of_more_than_the_memory_is_a_sentence(tmp_path, monkeypatch):
    """A machine with 10 MB, because a file for the memory of this one would take minutes to write."""
    width, rows = 1000, 5000
    zeros = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(width * rows, dtype=np.float32)), width)
    pq.write_table(pa.table({"x": zeros}), tmp_path / "a.parquet")
    assert (tmp_path / "a.parquet").stat().st_size < 100_000
    monkeypatch.setattr("byol.features.formats.available_memory", lambda: 10**7)
    with pytest.raises(DataError, match=r"a\.parquet .* GiB of memory are free"):
        Features.load(tmp_path / "a.parquet")


def test_a_long_name_of_many_rows_is_in_memory_once(tmp_path):
    """In a parquet file a megabyte that 20,000 rows share takes a megabyte, and 20 GB as so many texts."""
    name = pa.DictionaryArray.from_arrays(pa.array(np.zeros(20_000, dtype=np.int32)), pa.array(["n" * 10**6]))
    pq.write_table(pa.table({"name": name, "x": [[1.0]] * 20_000}), tmp_path / "a.parquet")
    names = Features.load(tmp_path / "a.parquet").names
    assert (len(names), len({id(one) for one in names})) == (20_000, 1)


@pytest.mark.parametrize("content", [{"\x1b[31mred\x07": X["x"]}, {"x": {**X["x"], "dtype": "\x1b[31mF32"}}])
def test_what_a_file_holds_cannot_command_the_terminal(tmp_path, content):
    with_header(tmp_path / "a.safetensors", content, bytes(16))
    with pytest.raises(DataError, match=r"a\.safetensors") as told:
        Features.load(tmp_path / "a.safetensors")
    assert str(told.value).isprintable()


@pytest.mark.parametrize("names", [[1, 2], [["a", "b"], ["c", "d"]]])
def test_names_that_are_not_text_are_refused(tmp_path, names):
    np.savez(tmp_path / "a.npz", x=np.eye(2), names=np.array(names))
    with pytest.raises(DataError, match="text"):
        Features.load(tmp_path / "a.npz")


@pytest.mark.parametrize("named", [True, False])
def test_as_many_classes_as_images_or_names_are_classes(named):
    """Landmarks and faces have tens of thousands, of which a part may hold a hundred images."""
    count = 40_000
    y = np.arange(count)[-100:] if named else np.arange(count)
    classes = tuple(map(str, range(count))) if named else None
    features = Features(np.ones((len(y), 2), np.float32), y, classes=classes)
    assert features.y.max() == count - 1

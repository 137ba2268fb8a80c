"""Features in memory, and in files of four kinds."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import load_file, save_file

from byol.errors import ConfigError, DataError
from byol.features import features as files
from byol.features.features import Features


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
     (np.eye(3), {"y": np.array([0, -1, 2])}, "from 0, for each"),
     (np.eye(3), {"y": np.arange(3), "classes": ("a", "b")}, "labels go up to 2, but 2 classes are named"),
     (np.eye(3), {"y": np.eye(3) * 2}, r"labels are float64 of shape \(3, 3\)"),
     (np.eye(3), {"y": np.eye(3), "classes": ("a", "b")}, "labels have 3 columns, but 2 classes are named"),
     (np.eye(3), {"names": ["a"]}, "1 names for 3 feature rows")],
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
     {"y": np.array([0, 1, 1, 0, 1]), "classes": ("a b", "ümläut 猫 🐈", "never seen"), "names": list("abcde")}],
    ids=["x", "labels", "names", "several labels", "all"],
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
features = Features.load(sys.argv[1], mapped=True)
done = True
watcher.join()
print(features.x.shape, (peak - before) / features.x.nbytes)
"""


@pytest.mark.parametrize("kind", [".npy", ".safetensors"])
def test_mapped_features_are_never_in_memory_as_a_whole(tmp_path, kind):
    """Not even while they are looked through for NaN: the memory that the process holds, the file's pages included."""
    features(100_000, 400).save(tmp_path / f"a{kind}")  # 160 MB
    command = [sys.executable, "-c", MEMORY, str(tmp_path / f"a{kind}")]
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
    """Pages are given back to the system only of read-only mappings: of others that could undo what was written."""
    np.save(tmp_path / "a.npy", np.ones((4, 3), dtype=np.float32))
    for mode in ("c", "r+"):
        own = np.load(tmp_path / "a.npy", mmap_mode=mode)
        own[1] = 7
        assert Features(own).x[1].tolist() == [7, 7, 7]
        assert own[1].tolist() == [7, 7, 7]


@pytest.mark.parametrize("kind", [*KINDS, ".npy"])
def test_saving_replaces_the_file_as_a_whole(tmp_path, kind):
    path = tmp_path / f"features{kind}"
    features().save(path)
    old = path.read_bytes()
    script = """
import resource, sys
import numpy as np
from byol.features.features import Features
features = Features(np.ones((100_000, 10)), names=["a"] * 100_000)
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
features.save(sys.argv[1])
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("byol.errors.DiskError: ")
    assert path.read_bytes() == old
    assert [path.name for path in tmp_path.iterdir()] == [path.name]


def test_another_kind_of_file_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot be written to a\.csv; expected a name that ends in \.npz"):
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


def test_a_flipped_bit_in_npz_is_noticed(tmp_path):
    path = tmp_path / "features.npz"
    features(50).save(path)
    flipped = bytearray(path.read_bytes())
    flipped[300] ^= 16  # among the numbers of x
    path.write_bytes(flipped)
    with pytest.raises(DataError, match=r"features\.npz does not hold features"):
        Features.load(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [({"images": np.zeros((3, 4, 4, 3))}, r"cannot be used as features\. It holds images; expected x"),
     ({}, r"cannot be used as features\. It holds nothing; expected x"),
     ({"x": np.array([[1, np.nan]])}, r"cannot be used as features\. 1 of 1 feature rows hold NaN"),
     ({"x": np.zeros(3)}, r"cannot be used as features\. Features have shape \(3,\)"),
     ({"x": np.array(["a"])}, r"cannot be used as features\. The features are no matrix of numbers")],
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
    with pytest.raises(DataError, match=f"{tmp_path} is a folder; expected an .npz"):
        Features.load(tmp_path)
    with pytest.raises(DataError, match=r"There is no file .*nothing\.npz"):
        Features.load(tmp_path / "nothing.npz")

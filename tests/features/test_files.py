"""Features in memory, and in files of four kinds."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from byol.errors import DataError
from byol.features.files import Features


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
     (np.eye(3), {"names": ["a"]}, "1 names for 3 feature rows")],
)  # fmt: skip
def test_refuses_what_cannot_be_features(x, others, message):
    with pytest.raises(DataError, match=message):
        Features(x, **others)


# Features in a file


@pytest.mark.parametrize(
    "others",
    [{}, {"y": np.array([0, 2, 1, 0, 2])}, {"names": list("abcde")},
     {"y": np.array([0, 1, 1, 0, 1]), "classes": ("a b", "ümläut 猫 🐈", "never seen"), "names": list("abcde")}],
    ids=["x", "labels", "names", "all"],
)  # fmt: skip
def test_what_was_saved_is_loaded(tmp_path, others):
    saved = features(**others)
    saved.save(tmp_path / "features.npz")
    loaded = Features.load(str(tmp_path / "features.npz"))
    assert np.array_equal(loaded.x, saved.x)
    assert loaded.x.dtype == np.float32
    assert loaded.names == saved.names
    assert loaded.classes == saved.classes
    assert (loaded.y is None) == (saved.y is None)
    assert saved.y is None or (np.array_equal(loaded.y, saved.y) and loaded.y.dtype == np.int64)


def test_names_with_odd_characters_are_kept(tmp_path):
    names = [
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
    features(len(names), names=names).save(tmp_path / "features.npz")
    assert Features.load(tmp_path / "features.npz").names == names


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


def test_npz_of_other_programs_needs_only_x(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.eye(3), y=np.arange(3, dtype=np.int32))
    loaded = Features.load(tmp_path / "a.npz")
    assert (loaded.x.dtype, loaded.y.tolist(), loaded.names) == (np.float32, [0, 1, 2], [])


def test_saving_replaces_the_file_as_a_whole(tmp_path, monkeypatch):
    path = tmp_path / "features.npz"
    features().save(path)
    old = path.read_bytes()

    def full(*args: object, **parts: object) -> None:
        args[0].write(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="No space left"):
        features(9).save(path)
    assert path.read_bytes() == old
    assert [path.name for path in tmp_path.iterdir()] == ["features.npz"]


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
    with pytest.raises(DataError, match="does not hold features"):
        Features.load(path)
    assert not (tmp_path / "executed").exists()


def test_damaged_file_is_refused_by_name(tmp_path):
    path = tmp_path / "features.npz"
    features(50, names=[str(number) for number in range(50)]).save(path)
    sound = path.read_bytes()
    for share in (0, 0.01, 0.5, 0.99):
        path.write_bytes(sound[: int(share * len(sound))])
        with pytest.raises(DataError, match=r"features\.npz does not hold features"):
            Features.load(path)
    flipped = bytearray(sound)
    flipped[300] ^= 16  # among the numbers of x
    path.write_bytes(flipped)
    with pytest.raises(DataError, match=r"features\.npz does not hold features"):
        Features.load(path)


@pytest.mark.parametrize(
    "content", [{"images": np.zeros((3, 4, 4, 3))}, {"x": np.array([[1, np.nan]])}, {"x": np.array(["a"])}]
)
def test_npz_of_something_else_is_refused_by_name(tmp_path, content):
    np.savez(tmp_path / "a.npz", **content)
    with pytest.raises(DataError, match=r"a\.npz does not hold features"):
        Features.load(tmp_path / "a.npz")


def test_missing_file_is_told(tmp_path):
    with pytest.raises(DataError, match=r"nothing\.npz does not hold features \(.*No such file"):
        Features.load(tmp_path / "nothing.npz")

"""The pickle reader: the same data as Python's own, nothing executed, nothing believed."""

import builtins
import os
import pickle
import random
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, strategies as st

from byol.encoders.foreign import kind_of
from byol.encoders.official import Made, array_in, made, official_state, read_official
from byol.encoders.pickles import Name, Stretch, read_pickle
from byol.errors import CheckpointError

ATOMS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**500), 2**500)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
)
TREES = st.recursive(
    ATOMS,
    lambda part: st.lists(part) | st.tuples(part, part) | st.dictionaries(st.text(), part),
    max_leaves=8,
)


def nothing(name: str) -> bool:
    return False


def read(content: bytes, folder: Path, expected=nothing):
    path = folder / "some.pkl"
    path.write_bytes(content)
    return read_pickle(path, expected, made)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("pickles")


@given(tree=TREES, protocol=st.sampled_from([3, 4, 5]))
def test_plain_data_is_what_python_reads(folder, tree, protocol):
    content = pickle.dumps(tree, protocol)
    assert read(content, folder) == pickle.loads(content)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("length", [0, 1, 1024, 1025, 300_000])
def test_bytes_of_any_length_come_out_of_the_file(folder, protocol, length):
    data = random.Random(0).randbytes(length)
    content = pickle.dumps([data, "end"], protocol)
    value, end = read(content, folder, lambda name: name in ("_codecs.encode", "__builtin__.bytes"))
    assert end == "end"
    if length or protocol > 2:  # protocol 2 writes no bytes as a call of bytes()
        assert (value.encode("latin-1") if isinstance(value, str) else bytes(value)) == data


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", "<f2", "<i4", "<i8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_are_numpys(folder, protocol, dtype, order):
    array = np.asarray(np.random.default_rng(0).integers(0, 100, (3, 5, 40)), dtype, order=order)
    found = array_in(read(pickle.dumps(array, protocol), folder, lambda name: True)).read()
    np.testing.assert_array_equal(found, array)
    assert found.dtype == array.dtype


class Calls:
    """Pickled, it calls something when it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class SetsState:
    """Pickled, it has code run that its state is handed to."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Calls, (print,), {"call": (Path.touch, (self.path,))}


def shell(path: Path) -> str:
    return f"touch {path}"


HOSTILE = {
    "os.system": lambda path: pickle.dumps(Calls(os.system, shell(path)), 2),
    "os.system, newest protocol": lambda path: pickle.dumps(Calls(os.system, shell(path)), 5),
    "eval": lambda path: pickle.dumps(Calls(builtins.eval, f"open({str(path)!r}, 'w').close()"), 2),
    "exec": lambda path: pickle.dumps(Calls(builtins.exec, f"open({str(path)!r}, 'w').close()"), 4),
    "getattr": lambda path: pickle.dumps(Calls(getattr, Calls(__import__, "os"), "system"), 2),
    "a method": lambda path: pickle.dumps(Calls(Path.touch, path), 4),
    "subprocess": lambda path: pickle.dumps(Calls(subprocess.call, ["touch", str(path)]), 4),
    "deep inside": lambda path: pickle.dumps(
        {"experiment_state": [({"a": Calls(os.system, shell(path))},)], "step": 1}, 2
    ),
    "beside what is read": lambda path: pickle.dumps({"step": 0, "rng": Calls(os.system, shell(path))}, 2),
    "as an array's dtype": lambda path: pickle.dumps(
        {"experiment_state": {"w": Calls(os.system, shell(path))}}, 3
    ),
    "state of an object": lambda path: pickle.dumps(SetsState(path), 2),
    "dill's eval": lambda path: (
        b"\x80\x02cdill._dill\n_eval_repr\nX" + packed(f"open({str(path)!r}, 'w')") + b"\x85R."
    ),
    "dill's import": lambda path: (
        b"\x80\x02cdill._dill\n_import_module\nX" + packed("antigravity") + b"\x85R."
    ),
    "dill's code": lambda path: b"\x80\x02cdill._dill\n_create_code\n)R.",
    "dill's function": lambda path: b"\x80\x02cdill._dill\n_create_function\n)R.",
    "dill's types": lambda path: b"\x80\x02cdill._dill\n_load_type\nX" + packed("CodeType") + b"\x85R.",
    "numpy's run": lambda path: (
        b"\x80\x02cnumpy.testing._private.utils\nrunstring\nX" + packed("1") + b"}\x86R."
    ),
    "numpy's load": lambda path: b"\x80\x02cnumpy\nload\nX" + packed(str(path)) + b"\x85R.",
    "a dotted name": lambda path: b"\x80\x04\x8c\x05numpy\x8c\x0ecore.os.system\x93)R.",
    "a name of other kinds": lambda path: b"\x80\x04K\x01K\x02\x93.",
    "old instance": lambda path: b"\x80\x02(X" + packed(shell(path)) + b"ios\nsystem\n.",
    "old object": lambda path: b"\x80\x02(cos\nsystem\nX" + packed(shell(path)) + b"o.",
    "persistent number": lambda path: b"\x80\x02X" + packed("storage") + b"Q.",
    "persistent name": lambda path: b"\x80\x02Pstorage\n.",
    "extension code": lambda path: b"\x80\x02\x82\x01.",
    "keyword call": lambda path: b"\x80\x04\x8c\x02os\x8c\x06system\x93)}\x92.",
}
RUN_BY_PYTHON = (
    "os.system",
    "os.system, newest protocol",
    "eval",
    "exec",
    "a method",
    "subprocess",
    "deep inside",
    "old instance",
)


def packed(text: str) -> bytes:
    return len(text.encode()).to_bytes(4, "little") + text.encode()


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickle_is_refused_and_nothing_in_it_is_run(tmp_path, name):
    canary, file = tmp_path / "executed", tmp_path / "hostile.pkl"
    file.write_bytes(HOSTILE[name](canary))
    modules = set(sys.modules)
    with pytest.raises(CheckpointError, match=r"Nothing in (it|the file) was run"):
        read_official(file)
    assert not canary.exists()
    assert not {"antigravity", "dill"} & (set(sys.modules) - modules)


@pytest.mark.parametrize("name", RUN_BY_PYTHON)
def test_the_canary_sings_where_a_pickle_is_executed(tmp_path, name):
    canary = tmp_path / "executed"
    pickle.loads(HOSTILE[name](canary))
    assert canary.exists()


@pytest.mark.parametrize(
    ("name", "called"),
    [
        ("os.system", "posix.system"),
        ("eval", "__builtin__.eval"),
        ("exec", "builtins.exec"),
        ("getattr", "__builtin__.getattr"),
        ("subprocess", "subprocess.call"),
        ("dill's eval", "dill._dill._eval_repr"),
        ("dill's types", "dill._dill._load_type"),
        ("numpy's run", "numpy.testing._private.utils.runstring"),
        ("a dotted name", "numpy.core.os.system"),
    ],
)
def test_hostile_pickle_is_refused_by_name(tmp_path, name, called):
    file = tmp_path / "hostile.pkl"
    file.write_bytes(HOSTILE[name](tmp_path / "executed"))
    with pytest.raises(
        CheckpointError, match=f"calls for '{called}', which no checkpoint of a network needs"
    ):
        read_official(file)


def test_names_that_may_occur_are_not_called_either(tmp_path):
    """A function of this very package, whose name the official code's package has too."""
    file, canary = tmp_path / "friendly.pkl", tmp_path / "written.txt"
    call = (
        b"cbyol.disk\nwrite_text\ncpathlib\nPath\nX"
        + packed(str(canary))
        + b"\x85RX"
        + packed("text")
        + b"\x86R"
    )
    file.write_bytes(b"\x80\x02" + call + b".")
    with pytest.raises(CheckpointError, match=r"calls for 'pathlib\.Path'"):
        read_official(file)
    tree = read_pickle(file, lambda name: True, lambda what, arguments: (what, *arguments))
    assert isinstance(tree[0], Name)
    assert (tree[0].text, tree[1][0].text, tree[2]) == ("byol.disk.write_text", "pathlib.Path", "text")
    assert not canary.exists()
    file.write_bytes(b"\x80\x02cbyol.no_such_module\nf\n)Rchaiku._src.data_structures\nFlatMapping\n)R\x86.")
    with pytest.raises(CheckpointError, match="not an official BYOL checkpoint"):
        read_official(file)
    assert "haiku" not in sys.modules


def test_a_hostile_name_cannot_write_to_the_terminal(tmp_path):
    file = tmp_path / "hostile.pkl"
    file.write_bytes(b"\x80\x04\x8c\x04os\x1b[\x8c\x06system\x93)R.")
    with pytest.raises(CheckpointError, match=r"'os\\x1b\[\.system'"):
        read_official(file)


BOMBS = {
    "text": b"\x80\x02X\xff\xff\xff\xffabc.",
    "long text": b"\x80\x04\x8d" + (1 << 62).to_bytes(8, "little") + b"abc.",
    "bytes": b"\x80\x03B\xff\xff\xff\x7fabc.",
    "long bytes": b"\x80\x04\x8e" + (1 << 62).to_bytes(8, "little") + b"abc.",
    "byte array": b"\x80\x05\x96" + (1 << 40).to_bytes(8, "little") + b"abc.",
    "frame": b"\x80\x04\x95" + (1 << 60).to_bytes(8, "little"),
    "a line without an end": b"\x80\x02c" + b"a" * 5_000_000,
    "number": b"\x80\x02\x8a\xff\x01.",
}


@pytest.mark.parametrize("name", BOMBS)
def test_length_that_lies_allocates_nothing(tmp_path, name):
    file = tmp_path / "bomb.pkl"
    file.write_bytes(BOMBS[name])
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=r"cut off or damaged|holds no data"):
            read_official(file)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("part", [b"]", b"\x85", b"}X\x01\x00\x00\x00a"], ids=["lists", "tuples", "dicts"])
def test_nesting_a_hundred_thousand_deep_is_only_deep(tmp_path, part):
    closing = {b"]": b"a", b"\x85": b"", b"}X\x01\x00\x00\x00a": b"s"}[part]
    file = tmp_path / "deep.pkl"
    file.write_bytes(b"\x80\x02N" + part * 100_000 + b"N" * bool(closing) + closing * 100_000 + b".")
    with pytest.raises(CheckpointError):
        read_official(file)


def test_key_that_is_nested_too_deep_to_be_hashed_is_refused(tmp_path):
    file = tmp_path / "key.pkl"
    file.write_bytes(b"\x80\x02}N" + b"\x85" * 300_000 + b"Ns.")
    with pytest.raises(CheckpointError, match="cut off or damaged"):
        read_official(file)


def test_a_million_parts_are_refused(tmp_path):
    file = tmp_path / "many.pkl"
    file.write_bytes(b"\x80\x02(" + b"}" * 1_100_000 + b"t.")
    with pytest.raises(CheckpointError, match="more than 1,000,000 parts"):
        read_official(file)


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    """A small but whole official checkpoint."""
    from official_files import haiku_network, write_official

    path = tmp_path_factory.mktemp("sound") / "sound.pkl"
    return write_official(path, haiku_network(blocks=(1, 1, 1, 1), width=1 / 64, hidden=4))


def test_file_cut_off_anywhere_is_refused(sound, tmp_path):
    content, file = sound.read_bytes(), tmp_path / "cut.pkl"
    for length in [*range(20), *range(20, len(content), len(content) // 60), len(content) - 1]:
        file.write_bytes(content[:length])
        with pytest.raises(CheckpointError):
            read_official(file)


def test_damaged_file_is_refused_or_gives_tensors_but_never_anything_else(sound, tmp_path):
    content, file = sound.read_bytes(), tmp_path / "damaged.pkl"
    draw, refused = random.Random(0), 0
    structure = [place for place in range(len(content)) if place < 3000 or draw.random() < 0.002]
    for place in draw.sample(structure, 150):
        damaged = bytearray(content)
        damaged[place] = draw.randrange(256)
        file.write_bytes(damaged)
        try:
            state = official_state(file)
        except CheckpointError:
            refused += 1
        else:
            assert "conv1.weight" in state
    assert refused > 60


def test_stretches_stay_in_the_file(sound):
    """The tree of a checkpoint is small, however large its arrays are."""
    seen = []

    def strings(value):
        if isinstance(value, Stretch):
            seen.append(value.end - value.start)
        for part in (
            value if isinstance(value, list | tuple) else value.values() if isinstance(value, dict)
            else (*value.arguments, value.state) if isinstance(value, Made) else ()
        ):  # fmt: skip
            strings(part)

    strings(read_pickle(sound, lambda name: True, made))
    assert sum(seen) > 0.7 * sound.stat().st_size


def test_pickles_are_told_from_encoder_files(tmp_path):
    for content, kind in (
        (pickle.dumps({"experiment_state": 1}, 2), "pickle"),
        (b"\x80\x02\x00\x00\x00\x00\x00\x00{" + b" " * 20, "safetensors"),  # with a header of 640 bytes
        (b"PK\x03\x04", "torch"),
        (b"", "empty"),
    ):
        (tmp_path / "file").write_bytes(content)
        assert kind in kind_of(tmp_path / "file")


def test_newer_protocol_asks_for_an_upgrade(tmp_path):
    (tmp_path / "new.pkl").write_bytes(b"\x80\x06N.")
    with pytest.raises(
        CheckpointError, match=r"pickle of protocol 6; this version of byol reads 2 to 5\. Upgrade byol"
    ):
        read_official(tmp_path / "new.pkl")

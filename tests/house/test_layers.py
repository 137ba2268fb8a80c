"""The house: imports point down, what is heavy is loaded where it is used, and files are read with care."""

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

import byol

PACKAGE = Path(byol.__file__).parent
LAYERS = [
    {"errors"},
    {"disk"},
    {"settings", "machine"},
    {"world"},
    {"method"},
    {"models", "data"},
    {"encoders"},
    {"features"},
    {"evaluation"},
    {"train", "exports"},
    {"report"},
    {"commands"},
    {"cli", "__init__"},
    {"__main__"},
]
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}


def room(module: str) -> str:
    """The folder or file, right below the package, that a module is in."""
    return (module.split(".")[1:] or ["__init__"])[0]


def name_of(path: Path) -> str:
    return ".".join(("byol", *path.relative_to(PACKAGE).with_suffix("").parts))


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, wherever in the file."""
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.ImportFrom) and node.module == "byol":
            yield from (f"byol.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            yield node.module or ""
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def calls(path: Path) -> Iterator[tuple[str, dict[str, str], list[object], str]]:
    """Every call in a file: the function, keyword arguments, constants among the others, and the whole."""
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Call):
            keywords = {keyword.arg or "**": ast.unparse(keyword.value) for keyword in node.keywords}
            constants = [part.value for part in node.args if isinstance(part, ast.Constant)]
            yield (
                ast.unparse(node.func),
                keywords,
                constants,
                f"{path.name}:{node.lineno} {ast.unparse(node)}",
            )


def test_imports_point_down_only():
    wrong = []
    for path in TREES:
        here = room(name_of(path))
        if here == "__init__":  # names everything, and loads it when it is first used
            continue
        for name in imports(path):
            there = room(name)
            if name.split(".")[0] == "byol" and there not in (here, "__version__"):
                wrong += [f"{path} imports {name}"] * (LEVEL[there] >= LEVEL[here])
    assert wrong == []


def test_the_picture_of_the_house_has_every_room_on_its_floor():
    drawn = ElementTree.parse(PACKAGE.parent / "docs" / "house.svg").iterfind(".//{*}text[@class='room']")
    places = [(float(room.attrib["y"]), room.text) for room in drawn]
    assert {room for _, room in places} == {*LEVEL} - {"__main__"}
    for height, here in places:
        assert all(LEVEL[there] < LEVEL[here] for below, there in places if below > height), here


def test_readers_know_nothing_of_what_is_built_on_them():
    above = {"byol.data.images", "byol.data.batches", "byol.data.workers", "byol.data.inspect"}
    for path in (PACKAGE / "data" / "readers").glob("*.py"):
        assert not above & set(imports(path)), path


def test_no_two_modules_have_one_name():
    """But for the commands, which are named as people type them."""
    names = Counter(path.stem for path in TREES if path.parent.name != "commands" and path.stem != "__init__")
    assert [name for name, times in names.items() if times > 1] == []


def test_the_method_knows_torch_and_nothing_else():
    for path in (PACKAGE / "method").glob("*.py"):
        for name in imports(path):
            assert name.split(".")[0] in {"torch", "byol", *sys.stdlib_module_names}, f"{path}: {name}"
            if name.startswith("byol"):
                assert name.startswith(("byol.method", "byol.errors")), f"{path}: {name}"


def test_nothing_executes_pickles_or_calls_home():
    for path in TREES:
        names = {*imports(path)} - {"http.server"}  # which is called; that only this machine can, is tested
        roots = {name.split(".")[0] for name in names}
        assert not roots & {"dill", "urllib", "requests", "http", "socket"}, path
        assert path.name == "pickles.py" or "pickle" not in roots, path
        for function, keywords, _, written in calls(path):
            assert function not in ("eval", "exec", "torch.hub.load", "pickle.load", "pickle.loads"), written
            if function == "torch.load":  # its restricted reader, and requested in so many words
                assert keywords.get("weights_only") == "True", written
            if function == "np.load" or "allow_pickle" in keywords:
                assert keywords.get("allow_pickle") == "False", written


def test_files_are_read_within_bounds_and_text_is_utf_8():
    """JSON and YAML go through byol.disk; a text file's encoding is never that of the machine's locale."""
    for path in TREES:
        for function, keywords, constants, written in calls(path):
            if path.name != "disk.py":
                assert function not in ("json.load", "json.loads", "yaml.load", "yaml.safe_load"), written
            method = function.rpartition(".")[2]
            as_text = method == "open" and {"r", "w", "x", "r+", "w+"} & set(constants)
            if as_text or function.endswith((".read_text", ".write_text")):
                assert "encoding" in keywords, written


def test_one_function_prints_what_people_read_and_escapes_every_name():
    """The others print what holds none: the help, the version, what other programs read."""
    own = {
        "print(OVERVIEW, end='')", "print(f'byol {__version__}')", "print(completion(), end='')",
        "print(HELP, end='')", "print(as_json(results, features))",
    }  # fmt: skip
    elsewhere = [path for path in TREES if path.name != "errors.py"]
    assert own == {
        w.partition(" ")[2] for path in elsewhere for name, _, _, w in calls(path) if name == "print"
    }


HEAVY = ("torchvision", "timm", "sklearn", "skimage", "matplotlib", "tyro", "rich", "pyarrow", "tensorboard")
FORMATS = ("PIL", "yaml", "safetensors")


def fresh(code: str) -> str:
    """What some code prints in a process of its own."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("code", "unused"),
    [
        ("import byol", ("torch", "numpy", *HEAVY, *FORMATS)),
        ("from byol.cli import main; main(['--help'])", ("torch", "numpy", *HEAVY, *FORMATS)),
        ("import byol; byol.BYOL, byol.LARS, byol.Views", (*HEAVY, *FORMATS)),
        ("import byol; byol.pretrain, byol.TrainConfig", HEAVY),
        ("import byol; byol.search, byol.pick, byol.clusters, byol.Features", (*HEAVY, "PIL", "safetensors")),
    ],
)
def test_no_library_is_loaded_before_it_is_used(code, unused):
    assert fresh(f"{code}\nimport sys; print([name for name in {unused!r} if name in sys.modules])") == "[]"


def test_every_public_name_is_there():
    for name in byol.__all__:
        assert callable(getattr(byol, name)), name
    assert set(byol.__all__) <= set(dir(byol))
    with pytest.raises(AttributeError, match="no attribute 'byoll'"):
        byol.byoll  # noqa: B018


def test_public_names_are_there_without_the_optional_libraries():
    code = (
        "import sys\n"
        f"for name in {(*HEAVY, 'onnx', 'onnxruntime', 'onnxscript')!r}: sys.modules[name] = None\n"
        "from byol import *\n"
        "import byol; print(all(hasattr(byol, name) for name in byol.__all__), BYOL, Embedder)"
    )
    assert fresh(code).startswith("True")


def test_public_functions_stay_functions_whatever_was_imported_before():
    """A subpackage of the same name would hide the function as soon as something imports it."""
    before = "import byol; byol.pretrain; import byol.evaluation.knn, byol.train.run"
    assert fresh(f"{before}; print(all(callable(getattr(byol, name)) for name in byol.__all__))") == "True"


def test_type_checkers_see_the_same_names_as_the_program():
    guarded = next(node for node in TREES[PACKAGE / "__init__.py"].body if isinstance(node, ast.If))
    names = [alias.asname for node in guarded.body for alias in node.names]
    assert sorted(names) == byol.__all__

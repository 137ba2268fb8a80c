"""The house: imports point down, and what is heavy is loaded where it is used."""

import ast
import statistics
import subprocess
import sys
from pathlib import Path

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
    {"commands"},
    {"cli", "__init__"},
    {"__main__"},
]
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def room_of(module: str) -> str:
    """The folder or file, right below the package, that a module is in."""
    return (module.split(".")[1:] or ["__init__"])[0]


def imports(path: Path) -> list[tuple[str, int]]:
    """Every module of this package that a file imports, wherever in the file, and the line."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "byol":
            found += [
                (f"{node.module}.{alias.name}" if node.module == "byol" else node.module, node.lineno)
                for alias in node.names
            ]
        elif isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names if alias.name.split(".")[0] == "byol"]
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down_only(path):
    here = room(path)
    if here == "__init__":  # re-exports everything, lazily
        return
    for name, line in imports(path):
        there = room_of(name)
        if there in ("__version__", "__init__"):
            continue
        assert there == here or LEVEL[there] < LEVEL[here], f"{path.name}:{line} imports {name}"


def test_the_method_knows_torch_and_nothing_else():
    allowed = {"torch", "byol", *sys.stdlib_module_names}
    for path in (PACKAGE / "method").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module]
            for name in names:
                assert name.split(".")[0] in allowed, f"{path.name} imports {name}"
                assert not name.startswith("byol.") or name.startswith(("byol.method", "byol.errors")), (
                    f"{path.name}: {name}"
                )


HEAVY = (
    "torchvision",
    "timm",
    "sklearn",
    "skimage",
    "matplotlib",
    "tyro",
    "rich",
    "pyarrow",
    "PIL",
    "yaml",
    "safetensors",
)


def fresh(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout.strip()


def loaded(code: str, names: tuple[str, ...]) -> list[str]:
    """Which of these libraries a fresh process has loaded after some code."""
    return ast.literal_eval(
        fresh(f"{code}\nimport sys\nprint([name for name in {names!r} if name in sys.modules])")
    )


def test_import_byol_loads_nothing_heavy():
    assert loaded("import byol", ("torch", "numpy", *HEAVY)) == []


def test_the_public_method_loads_no_optional_library():
    assert loaded("import byol; byol.BYOL, byol.LARS, byol.Views", HEAVY) == []


def test_training_loads_no_library_that_it_does_not_use():
    unused = ("torchvision", "timm", "sklearn", "skimage", "matplotlib", "tyro", "rich", "pyarrow")
    assert loaded("import byol; byol.pretrain, byol.TrainConfig", unused) == []


def test_using_features_loads_no_library_before_it_is_needed():
    optional = (
        "torchvision",
        "timm",
        "sklearn",
        "skimage",
        "matplotlib",
        "tyro",
        "rich",
        "pyarrow",
        "PIL",
        "safetensors",
    )
    assert loaded("import byol; byol.search, byol.pick, byol.clusters, byol.Features", optional) == []


def test_every_public_name_is_there():
    for name in byol.__all__:
        assert callable(getattr(byol, name)), name
    assert set(byol.__all__) <= set(dir(byol))
    with pytest.raises(AttributeError, match="no attribute 'byoll'"):
        byol.byoll  # noqa: B018


def test_public_functions_stay_functions_whatever_was_imported_before():
    """A subpackage of the same name would hide the function as soon as something imports it."""
    before = "import byol; byol.pretrain; import byol.evaluation.knn, byol.train.run"
    assert fresh(f"{before}; print(all(callable(getattr(byol, name)) for name in byol.__all__))") == "True"


def test_type_checkers_see_the_same_names_as_the_program():
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    guarded = next(node for node in tree.body if isinstance(node, ast.If))
    names = sorted(
        alias.asname for node in guarded.body if isinstance(node, ast.ImportFrom) for alias in node.names
    )
    assert names == byol.__all__


@pytest.mark.slow
def test_help_is_instant():
    def seconds(*command: str) -> float:
        code = f"import subprocess, time; t = time.perf_counter(); subprocess.run({list(command)!r}, capture_output=True); "
        return float(fresh(code + "print(time.perf_counter() - t)"))

    assert statistics.median(seconds(sys.executable, "-m", "byol", "--help") for _ in range(5)) <= 0.4
    code = (
        "import time, torch; t = time.perf_counter(); import byol; byol.BYOL; print(time.perf_counter() - t)"
    )
    assert statistics.median(float(fresh(code)) for _ in range(3)) <= 0.2


def test_nothing_executes_pickles_or_calls_home():
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = (
                    [alias.name for alias in node.names]
                    if isinstance(node, ast.Import)
                    else [node.module or ""]
                )
                assert not {name.split(".")[0] for name in names} & {
                    "pickle",
                    "dill",
                    "urllib",
                    "requests",
                    "http",
                    "socket",
                }, path
            if isinstance(node, ast.Call):
                assert ast.unparse(node.func) not in ("eval", "exec", "torch.hub.load"), (
                    f"{path}:{node.lineno}"
                )
                if (
                    ast.unparse(node.func) == "torch.load"
                ):  # its restricted reader, and asked for in so many words
                    given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                    assert given.get("weights_only") == "True", f"{path}:{node.lineno}"
                for keyword in node.keywords:
                    assert not (keyword.arg == "allow_pickle" and ast.unparse(keyword.value) != "False"), (
                        f"{path}:{node.lineno}"
                    )
                if ast.unparse(node.func) == "np.load":
                    assert any(keyword.arg == "allow_pickle" for keyword in node.keywords), (
                        f"{path}:{node.lineno}"
                    )

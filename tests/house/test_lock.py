"""requirements-dev.lock: the exact files, by their hashes, that the tests ran with."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = ("parquet", "models", "search", "export", "demo", "figures", "test", "docs", "examples", "dev")
NEEDED = [
    *PROJECT["dependencies"],
    *(line for extra in EXTRAS for line in PROJECT["optional-dependencies"][extra]),
    *(line for line in (ROOT / "examples" / "requirements.txt").read_text().splitlines() if line[0] != "#"),
]


def locked() -> dict[str, list[tuple[str, int]]]:
    """Versions and numbers of hashes by package; a package may have a version for each Python."""
    found: dict[str, list[tuple[str, int]]] = {}
    for block in re.split(r"\n(?=[a-z0-9])", (ROOT / "requirements-dev.lock").read_text()):
        if match := re.match(r"([a-z0-9-]+)==([^ ;\\]+)", block):
            found.setdefault(match[1], []).append((match[2], block.count("--hash=sha256:")))
    return found


@pytest.mark.parametrize("line", [line for line in NEEDED if not line.startswith("byol")])
def test_every_dependency_is_locked_to_a_version_that_the_project_allows(line):
    requirement = Requirement(line)
    versions = locked()[requirement.name.lower().replace("_", "-")]
    assert all(requirement.specifier.contains(version) for version, _ in versions)


def test_every_locked_package_has_its_hashes():
    assert len(locked()) > 60
    assert all(hashes for versions in locked().values() for _, hashes in versions)

"""requirements-dev.lock: the exact files, by their hashes, that the tests ran with."""

import copy
import hashlib
import json
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = (ROOT / "requirements-dev.lock").read_text()
EXAMPLES = [
    line for line in (ROOT / "examples" / "requirements.txt").read_text().splitlines() if line[0] != "#"
]
DENIED = {"lightning": ("2.6.2", "2.6.3")}  # which were published by a thief, April 2026


def needed(extra: str) -> set[str]:
    """The lines of an extra, and of those of this project's that it takes."""
    lines = {Requirement(line) for line in PROJECT["optional-dependencies"][extra]}
    own = {more for line in lines if line.name == "byol" for more in line.extras}
    return {str(line) for line in lines if line.name != "byol"}.union(*map(needed, own))


def checksum(project: dict) -> str:
    asked = [project[key] for key in ("requires-python", "dependencies", "optional-dependencies")]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()


def locked() -> dict[str, list[tuple[str, int]]]:
    """Versions and numbers of hashes by package; a package may have a version for each Python."""
    found: dict[str, list[tuple[str, int]]] = {}
    for block in re.split(r"\n(?=[a-z0-9])", LOCK):
        if match := re.match(r"([a-z0-9-]+)==([^ ;\\]+)", block):
            found.setdefault(match[1], []).append((match[2], block.count("--hash=sha256:")))
    return found


@pytest.mark.parametrize("line", sorted({*PROJECT["dependencies"], *needed("dev"), *EXAMPLES}))
def test_every_dependency_is_locked_to_a_version_that_the_project_allows(line):
    requirement = Requirement(line)
    versions = locked()[requirement.name.lower().replace("_", "-")]
    assert all(requirement.specifier.contains(version) for version, _ in versions)


def test_every_locked_package_has_its_hashes():
    assert len(locked()) > 60
    assert all(hashes for versions in locked().values() for _, hashes in versions)


def test_the_lock_was_made_for_the_dependencies_that_the_project_has_now():
    assert re.findall("^# for dependencies with the checksum (.+)$", LOCK, re.MULTILINE) == [
        checksum(PROJECT)
    ], "run: make lock"


@pytest.mark.parametrize("change", ["added", "taken away", "another bound", "an extra", "another Python"])
def test_a_change_of_the_dependencies_without_the_lock_is_noticed(change):
    project = copy.deepcopy(PROJECT)
    if change == "added":
        project["dependencies"].append("requests")
    elif change == "taken away":
        project["dependencies"].pop()
    elif change == "another bound":
        project["optional-dependencies"]["map"][0] += ",<9"
    elif change == "an extra":
        project["optional-dependencies"]["more"] = ["requests"]
    else:
        project["requires-python"] = ">=3.12"
    assert checksum(project) != checksum(PROJECT)


def test_nothing_is_locked_in_its_first_week_or_known_to_be_stolen():
    recipe = (ROOT / "Makefile").read_text().partition("\nlock:")[2].partition("\n\n")[0]
    assert '--exclude-newer "7 days"' in recipe
    for name, versions in DENIED.items():
        assert not {version for version, _ in locked().get(name, [])} & {*versions}

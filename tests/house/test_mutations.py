"""The list of wrong changes, which `make mutants` tries, follows the code."""

import ast
from pathlib import Path

import pytest
from mutants import Mutation, mutations

import byol

PACKAGE = Path(byol.__file__).parent
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("mutation", mutations(), ids=lambda one: f"{one.file}: {one.name}")
def test_a_wrong_change_can_be_made_and_has_tests_that_should_notice(mutation: Mutation) -> None:
    text = (PACKAGE / mutation.file).read_text(encoding="utf-8")
    assert text.count(mutation.old) == 1, "tests/mutations.txt has to follow the code"
    ast.parse(text.replace(mutation.old, mutation.new))
    paths = [ROOT / word for word in mutation.guards if word.startswith("tests/")]
    assert paths
    assert all(path.exists() for path in paths)

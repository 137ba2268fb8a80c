"""What is said of failures, in a few words."""

import pytest

from byol.errors import complaint


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (
            RuntimeError("Error(s) in loading state_dict for Net:\n\tMissing key(s): a. \n\tUnexpected: b"),
            "Missing key(s): a.",
        ),
        (ValueError("one line"), "one line"),
        (ValueError("\n  indented \t words\nmore"), "indented words"),
        (KeyError(105), "KeyError 105"),
        (EOFError(), "EOFError"),
        (ValueError("ends in a colon:"), "ends in a colon:"),
        (KeyError("x" * 500), "'" + "x" * 195 + " ..."),
    ],
)
def test_the_first_thing_that_another_library_complains_of_is_told(failure, words):
    assert complaint(failure) == words

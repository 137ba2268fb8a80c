"""The failures a caller can catch, and the exit code each ends the command line with.

Raise `ConfigError` for a setting or an argument that cannot work, `DataError` for images or labels that
cannot be used, `CheckpointError` for files of a run that do not fit, `TrainingError` for a run that went
wrong while running, and `Stopped` when a run was asked to stop and has saved its state; `byol.disk` raises
`DiskError`. A message says what came, what was expected, what to do.
"""

import errno
import os
import sys
from collections.abc import Iterable
from difflib import get_close_matches
from importlib import import_module
from typing import Any, TextIO

DISK_TROUBLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ESTALE)


class ByolError(Exception):
    """Every failure this package raises on purpose."""

    exit_code = 70
    shared = False  # whether all processes of a run end with it; then one of them tells


class ConfigError(ByolError, ValueError):
    """A setting, name or argument that cannot work."""

    exit_code = 2


class DataError(ByolError, ValueError):
    """Images or labels that cannot be read or used."""

    exit_code = 3


class CheckpointError(ByolError, RuntimeError):
    """A file of a run that is missing, damaged or belongs to another run."""

    exit_code = 2


class TrainingError(ByolError, RuntimeError):
    """A run that went wrong while running: the loss is not finite, a worker died."""

    exit_code = 4


class CollapseError(TrainingError):
    """A run whose encoder gives all images the same representation."""

    exit_code = 5


class DiskError(ByolError, OSError):
    """A file that cannot be written. Made of errno, the operating system's words, and the path."""

    def __init__(self, number: int, reason: str, path: str) -> None:
        super().__init__(number, reason, path)
        self.exit_code = 70 if number in DISK_TROUBLE else 2

    def __str__(self) -> str:
        return f"{self.filename} cannot be written: {self.strerror}. Make room, or choose another place."


class ProcessLost(ByolError):
    """Another process of the run has ended, or does not answer."""


class Stopped(ByolError):
    """A run that was asked to stop by a signal and has saved its state: running it again continues it."""

    def __init__(self, message: str, *, exit_code: int, by: str = "") -> None:
        super().__init__(message)
        self.exit_code, self.by = exit_code, by


def damaged(path: object, how: str) -> CheckpointError:
    """What to raise of a file that only another copy of it can replace; `how` says what is wrong with it."""
    return CheckpointError(f"{path} {how}. Take another copy.")


def library(name: str, extra: str = "models", for_what: str = "") -> Any:
    """An optional library. ConfigError says how to install a missing one, and what needs it."""
    try:
        return import_module(name)
    except ModuleNotFoundError as missing:
        if missing.name != name:
            raise
        needed = f", which {for_what} need," if for_what else ""
        raise ConfigError(f"{name}{needed} is not installed: pip install 'byol[{extra}]'") from missing


def did_you_mean(word: str, choices: Iterable[str], count: int = 3) -> str:
    """' Did you mean 'a' or 'b'?' for the choices nearest to a word, or '' when none is near."""
    near = get_close_matches(word, list(choices), n=count, cutoff=0.5)
    return f" Did you mean {' or '.join(repr(name) for name in near)}?" if near else ""


def complaint(failure: Exception) -> str:
    """What another library's exception complains of, in a few words; torch puts it below a title."""
    lines = [" ".join(line.split()) for line in str(failure).splitlines() if line.strip()] or [""]
    line = lines[1] if lines[0].endswith(":") and len(lines) > 1 else lines[0]
    if not any(letter.isalpha() for letter in line):  # KeyError: 105
        line = f"{type(failure).__name__} {line}".rstrip()
    return line if len(line) <= 200 else f"{line[:196]} ..."


def printable(text: str) -> str:
    """Text of somebody else's, such as a file's name, as any terminal can show it: line ends, escapes and
    bytes that are not UTF-8 are written out."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text
    )


def is_first() -> bool:
    """Whether this process is the one of its world that talks, before it is joined and after."""
    return os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK", "0") == "0"


def show(*lines: str, file: TextIO | None = None) -> None:
    """Print lines for people, on stdout by default, as `printable` has them: they hold names of files."""
    print("\n".join(map(printable, lines)), file=sys.stdout if file is None else file, flush=True)

"""Files that hold the old content or the new one, whatever happens in between."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from byol.errors import ConfigError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path to write to; it takes the file's place as a whole when the block ends well, else it is removed."""
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    try:
        temporary.touch()
        mode = (
            temporary.stat().st_mode
        )  # as the umask has it: safetensors leaves files that only their owner can read
        yield temporary
        temporary.chmod(mode)
        sync(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


@contextmanager
def filling(folder: Path) -> Iterator[Path]:
    """A temporary folder to fill; it becomes `folder` (empty, or not there) when the block ends well, else it is removed."""
    temporary = folder.with_name(f".tmp-{os.getpid()}-{folder.name}")
    temporary.mkdir()
    try:
        yield temporary
        for path in (*temporary.iterdir(), temporary):
            sync(path)
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync(folder.parent)


def check_writable(folder: Path, advice: str = "Choose another place.") -> None:
    """Raise ConfigError, before any work, when no file can be made in a folder, or where it would be made."""
    place = folder
    while not os.path.exists(
        place
    ):  # which, unlike Path's own, takes a folder that may not be looked into for none
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as failure:
        raise ConfigError(f"Nothing can be written to {folder}: {failure.strerror}. {advice}") from failure


def left_behind(path: Path) -> bool:
    """Whether something temporary, made by `replacing` or `filling`, is of a process that has ended."""
    pid = path.name.split("-")[1]
    return not (pid.isdecimal() and running(int(pid)))


def running(pid: int) -> bool:
    """Whether this machine has a process of this number."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # somebody else's
        return True
    return True


def write_text(path: Path, text: str) -> None:
    """Replace a small file as a whole."""
    with replacing(path) as temporary:
        temporary.write_text(text)


def sync(path: Path) -> None:
    """Have the operating system write a file or a folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

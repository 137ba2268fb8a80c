"""Files that hold the old content or the new one, whatever happens in between."""

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from byol.errors import DISK_TROUBLE, ConfigError, DiskError


@contextmanager
def writing(path: Path, *also: Path) -> Iterator[None]:
    """Raise DiskError where a file cannot be written, whichever library says so.

    `also` are other names that it has meanwhile.
    """
    try:
        yield
    except Exception as failure:
        number, named = getattr(failure, "errno", None), getattr(failure, "filename", None)
        if found := re.search(r"\(os error (\d+)\)", str(failure)):  # SafetensorError
            number = int(found[1])
        elif re.fullmatch(r"\d+ requested and \d+ written", str(failure)):  # what numpy says of a full disk
            number = errno.ENOSPC
        if number is None or (named is None and number not in DISK_TROUBLE):
            raise
        place = Path(os.fsdecode(path if named is None else named))
        if not any(own in (place, *place.parents) for own in (path, *also)):
            raise
        raise DiskError(number, os.strerror(number), os.fspath(path)) from failure


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path to write to; it takes the file's place when the block ends well, else it is removed.

    Raises DiskError when it cannot be written.
    """
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    with writing(path, temporary):
        try:
            temporary.touch()
            mode = temporary.stat().st_mode  # as the umask has it: safetensors lets only the owner read
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
    """A temporary folder; it becomes `folder` (empty or not there) when the block ends well, else it is gone.

    Raises DiskError when it cannot be written.
    """
    temporary = folder.with_name(f".tmp-{os.getpid()}-{folder.name}")
    with writing(folder, temporary):
        shutil.rmtree(temporary, ignore_errors=True)  # a container's processes may all have the same number
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


def write_text(path: Path, text: str) -> None:
    """Replace a small file as a whole. Raises DiskError when it cannot be written."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def append_text(path: Path, text: str) -> None:
    """Add to the end of a file, all or none, in one write that lines of another process do not fall between.

    Raises DiskError when it cannot be written.
    """
    content = text.encode()
    with writing(path), path.open("ab", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        if file.write(content) < len(content):
            file.truncate(end)
            raise OSError(errno.ENOSPC, "")


def check_writable(folder: Path, advice: str = "Choose another place.") -> None:
    """Raise ConfigError, before any work, when no file can be made in a folder, or where it would be made."""
    place = folder
    while not os.path.exists(
        place
    ):  # unlike Path's own, it takes a folder that may not be looked into for none
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


def sync(path: Path) -> None:
    """Have the operating system write a file or a folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

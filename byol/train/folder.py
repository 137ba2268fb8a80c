"""A run's folder belongs to one process at a time."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from byol.disk import running
from byol.errors import CheckpointError, ConfigError


@contextmanager
def claim(folder: Path) -> Iterator[Path]:
    """Make the folder if need be and hold it; the operating system lets go of it however the process ends.

    Raises CheckpointError when another process holds it or when it holds something else than a run, ConfigError when it
    cannot be made.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        others = [
            path.name for path in folder.iterdir() if not path.name.startswith(".")
        ]  # nor .DS_Store or .tmp-...
        if others and not (folder / "plan.json").exists() and not any(name in _OF_A_RUN for name in others):
            raise CheckpointError(
                f"{folder} is not empty and holds no run (it has {others[0]!r}). Choose a new folder with --out."
            )
        lock = (folder / ".lock").open("a+")
    except OSError as failure:
        raise ConfigError(
            f"The run's folder {folder} cannot be used: {failure.strerror}. Choose another --out."
        ) from failure
    with lock:
        _wait_for(lock, folder)
        _sign(lock)
        try:
            yield folder
        except BaseException:
            _unmake(folder, made)
            raise


def _sign(lock: TextIO) -> None:
    """Say who holds the folder; on a full disk it is held all the same."""
    lock.truncate(0)
    with suppress(OSError):
        lock.write(f"process {os.getpid()} on {os.uname().nodename}")
        lock.flush()


def _unmake(folder: Path, made: list[Path]) -> None:
    """Remove the folders that were made for a run that left nothing in them."""
    if made and [path.name for path in folder.iterdir()] == [".lock"]:
        (folder / ".lock").unlink()
        for path in made:
            path.rmdir()


def _wait_for(lock: TextIO, folder: Path) -> None:
    """Take the lock. A killed run's workers hold it for the few seconds until they notice that they are alone."""
    for _ in range(100):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read()
            if not _has_ended(holder):
                break
            time.sleep(0.1)
    raise CheckpointError(
        f"{folder} is in use by {holder or 'another process'}. Wait for it, or choose another --out."
    )


def _has_ended(holder: str) -> bool:
    words = holder.split()
    here = len(words) == 4 and words[1].isdecimal() and words[3] == os.uname().nodename
    return here and not running(int(words[1]))


_OF_A_RUN = {"config.yaml", "env.json"}  # written before plan.json: a run killed in that moment starts again

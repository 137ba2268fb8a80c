"""A run's folder belongs to one process at a time, and a signal asks that process to save and leave."""

import fcntl
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, TextIO

from byol.disk import running
from byol.errors import ByolError, CheckpointError, ConfigError, Stopped


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


class StopSignals:
    """Turns SIGINT, SIGTERM, SIGHUP (and SIGUSR1, as batch systems send) into a wish to stop at the next step.

    Before the first step is done there is nothing to save, and Stopped is raised at once. Later the second Ctrl-C interrupts
    at once. Outside the main thread signals are left alone, and so is SIGHUP under nohup.
    """

    CODES = {signal.SIGINT: 130, signal.SIGTERM: 75, signal.SIGUSR1: 75, signal.SIGHUP: 75}  # noqa: RUF012

    def __init__(self) -> None:
        self.asked: signal.Signals | None = None
        self._steps_done = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            numbers = [n for n in self.CODES if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def wait_for_steps(self) -> None:
        """From now on a signal waits for the end of the step."""
        self._steps_done = True

    def wanted(self) -> bool:
        """Whether a signal has asked to stop."""
        return self.asked is not None

    def ended(self, step: int, total: int, saved: bool, last_good: str) -> ByolError:
        """What to raise at the end of the step after which a signal asked to stop."""
        if not saved:
            return ByolError(
                f"Stopped by {self.name}, but step {step:,} of {total:,} could not be saved. {last_good}"
            )
        return Stopped(
            f"Stopped by {self.name} and saved at step {step:,} of {total:,}. The same command continues from there.",
            exit_code=self.exit_code,
        )

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked is signal.SIGINT and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = signal.Signals(number)
        if not self._steps_done:
            raise Stopped(
                f"Stopped by {self.name} before a step was done. The same command takes it up again.",
                exit_code=self.exit_code,
            )
        if number == signal.SIGINT:
            with suppress(OSError):
                os.write(2, b"\nstopping after this step; Ctrl-C again ends at once, without saving\n")

    @property
    def name(self) -> str:
        return {signal.SIGINT: "Ctrl-C"}.get(self.asked, self.asked.name) if self.asked else "nothing"

    @property
    def exit_code(self) -> int:
        return self.CODES[self.asked] if self.asked else 0

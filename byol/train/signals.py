"""A signal asks a run to save and leave."""

import os
import signal
import threading
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any

from byol.errors import ByolError, Stopped


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

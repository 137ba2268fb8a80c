"""Signals ask a run to save and leave."""

import os
import signal
import threading
from collections import Counter
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any

from byol.data.workers import STOP_SIGNALS
from byol.errors import ByolError, Stopped


class StopSignals:
    """Turns SIGINT, SIGTERM, SIGHUP and, as batch systems send, SIGUSR1 and SIGUSR2 into a wish to stop.

    A handler only takes note: an exception out of it could come up inside a decoder, which would take it for a bad image.
    Whatever works or waits for long calls `check` instead. The second Ctrl-C interrupts at once, a third of another kind
    ends the process. Outside the main thread signals are left alone, and so is SIGHUP under nohup.
    """

    def __init__(self) -> None:
        self._first: signal.Signals | None = None
        self._counts: Counter[int] = Counter()
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            numbers = [n for n in STOP_SIGNALS if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def check(self, how: str = "before a step was done. The same command takes it up again.") -> None:
        """Raise Stopped, which tells how, when a signal has come."""
        if self._first is not None:
            raise self._stopped(how)

    def ended(self, step: int, total: int, saved: bool, last_good: str) -> ByolError:
        """What to raise when `check` has stopped a run that had done steps."""
        if not saved:
            return ByolError(
                f"Stopped by {self._name}, but step {step:,} of {total:,} could not be saved. {last_good}"
            )
        return self._stopped(
            f"and saved at step {step:,} of {total:,}. The same command continues from there."
        )

    @property
    def _name(self) -> str:
        return (
            "nothing" if self._first is None else {signal.SIGINT: "Ctrl-C"}.get(self._first, self._first.name)
        )

    def _stopped(self, how: str) -> Stopped:
        return Stopped(
            f"Stopped by {self._name} {how}", exit_code=130 if self._first == signal.SIGINT else 75
        )

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._first = self._first or signal.Signals(number)
        self._counts[number] += 1
        if number == signal.SIGINT:
            if self._counts[number] > 1:
                raise KeyboardInterrupt
            with suppress(OSError):
                os.write(2, b"\nstopping; Ctrl-C again ends at once, without saving\n")
        elif self._counts[number] > 2:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

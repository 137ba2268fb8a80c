"""Signals ask a run to save and leave."""

import os
import signal
import threading
from collections import Counter
from contextlib import suppress
from types import FrameType
from typing import Any

from byol.data.workers import STOP_SIGNALS
from byol.errors import Stopped


class StopSignals:
    """Turns SIGINT, SIGTERM, SIGHUP and, as batch systems send, SIGUSR1 and SIGUSR2 into a wish to stop.

    A handler only takes note: an exception out of it could come up inside a decoder, which would take it for
    a bad image. Whatever works or waits for long calls `check` instead. The second Ctrl-C interrupts at once,
    a third signal of another kind ends the process. Outside the main thread signals are left alone, and so is
    SIGHUP under nohup.
    """

    def __init__(self) -> None:
        self.by, self.exit_code = "", 0  # of the first signal
        self._counts: Counter[int] = Counter()
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            numbers = [n for n in STOP_SIGNALS if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def __exit__(self, *failure: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def check(self, how: str = "before a step was done. The same command takes it up again.") -> None:
        """Raise Stopped, which tells how, when a signal has come."""
        if self.by:
            raise Stopped(f"Stopped by {self.by} {how}", exit_code=self.exit_code, by=self.by)

    def _note(self, number: int, frame: FrameType | None) -> None:
        interrupt = number == signal.SIGINT
        if not self.by:
            self.by = "Ctrl-C" if interrupt else signal.Signals(number).name
            self.exit_code = 130 if interrupt else 75
        self._counts[number] += 1
        if interrupt and self._counts[number] > 1:
            raise KeyboardInterrupt
        if interrupt:
            with suppress(OSError):
                os.write(2, b"\nstopping; Ctrl-C again ends at once, without saving\n")
        elif self._counts[number] > 2:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

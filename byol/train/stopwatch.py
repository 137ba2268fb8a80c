"""What the time of a run is spent on. It is spent on one part at any moment: what begins says so."""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from byol.disk import MOST_OF_A_RUN, read_json
from byol.method.byol import BYOL

# Waiting for images; making views of them; the online network, forward and backward; the target network; the
# optimizer, with the target's moving average; looks at the representation, and metrics; checkpoints.
PARTS = ("waiting", "views", "online", "target", "optimizer", "looks", "saving", "rest")


class Mark(NamedTuple):
    """When a part began: by the host's clock, and where the GPU had come by then."""

    part: str
    at: float  # seconds
    event: torch.cuda.Event | None

    def until(self, end: "Mark") -> float:
        """Seconds to a later mark. A GPU, which the host runs ahead of, has come to both."""
        if self.event is None or end.event is None:
            return end.at - self.at
        return float(self.event.elapsed_time(end.event)) / 1000


class Stopwatch:
    """Counts the seconds of each part, of a run that began at `started` by the clock.

    On an NVIDIA GPU they are those of its own timeline, by events that are read once it has come to them: so
    its work counts where it was launched, waiting only where it stood still, and nothing ever waits for it.
    Elsewhere they are the host's.
    """

    def __init__(
        self,
        device: torch.device | None = None,
        started: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.clock = clock
        on_gpu = device is not None and device.type == "cuda"
        self._stream = torch.cuda.current_stream(device) if on_gpu else None
        self._spent = dict.fromkeys(PARTS, 0.0)
        self._marks = deque([self._mark("rest")])  # the first is of what goes on, or what the GPU is at
        self._spent["rest"] = 0.0 if started is None else self._marks[0].at - started

    def begin(self, part: str) -> None:
        """Count the time from now on for this part."""
        self._marks.append(self._mark(part))
        while len(self._marks) > 1 and _passed(self._marks[1]):
            mark = self._marks.popleft()
            self._spent[mark.part] += mark.until(self._marks[0])

    @contextmanager
    def during(self, part: str) -> Iterator[None]:
        """Count the time of the block for this part, then again for what it was before."""
        before = self._marks[-1].part
        self.begin(part)
        try:
            yield
        finally:
            self.begin(before)

    def follow(self, learner: BYOL, forward: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Notice by hooks what a training step does, which knows nothing of it.

        `forward` is what the step calls. Behind a micro-batch's forward pass all is the online network's
        until the optimizer begins.
        """
        forward.register_forward_pre_hook(lambda *_: self.begin("online"))
        if learner.use_momentum:  # else the target is the online network
            learner.target.register_forward_pre_hook(lambda *_: self.begin("target"))
            learner.target.register_forward_hook(lambda *_: self.begin("online"))
        optimizer.register_step_pre_hook(lambda *_: self.begin("optimizer"))

    def seconds(self) -> dict[str, float]:
        """Of each part until now. What a GPU has not come to yet is counted by the host's clock."""
        found = dict(self._spent)
        for mark, end in pairwise([*self._marks, Mark("", self.clock(), None)]):
            found[mark.part] += end.at - mark.at
        return found

    def add(self, earlier: Mapping[str, float]) -> None:
        """Count what an earlier part of the run has spent too."""
        for part, seconds in earlier.items():
            self._spent[part] += seconds

    def _mark(self, part: str) -> Mark:
        event = None
        if self._stream is not None:
            event = torch.cuda.Event(enable_timing=True)
            event.record(self._stream)
        return Mark(part, self.clock(), event)


def _passed(mark: Mark) -> bool:
    return mark.event is None or mark.event.query()


def to_metrics(seconds: Mapping[str, float]) -> dict[str, float]:
    """The seconds of each part as a line of metrics tells them."""
    return {f"seconds_{part}": round(value, 3) for part, value in seconds.items()}


def from_metrics(line: Mapping[str, Any]) -> dict[str, float]:
    """What a line tells of the seconds of each part; nothing where it does not, or nothing that can be."""
    found = {part: line.get(f"seconds_{part}") for part in PARTS}
    sound = {p: float(x) for p, x in found.items() if isinstance(x, int | float) and 0 <= x < math.inf}
    return sound if len(sound) == len(PARTS) else {}


def whole_time(told: Mapping[str, float], path: Path) -> dict[str, float]:
    """The seconds of each part that lines of metrics have `told`, or of a run's time.json where it has more.

    It is written when all is saved, which is after the last line; a run that is made longer goes on from it.
    """
    found: dict[str, float] = {}
    with suppress(OSError, ValueError, TypeError, AttributeError, OverflowError):  # missing or damaged
        found = from_metrics(read_json(path, MOST_OF_A_RUN))
    return max(dict(told), found, key=lambda seconds: sum(seconds.values()))

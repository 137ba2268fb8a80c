"""How fast a run goes, and how much of its time it waits for images."""

import time
from collections.abc import Generator, Iterator
from typing import Any

from byol.data.batches import Batch
from byol.train.plan import Plan
from byol.train.step import StepResult


class Timed:
    """Passes batches on and adds up the seconds spent waiting for them."""

    def __init__(self, batches: Generator[Batch]) -> None:
        self.batches = batches
        self.waited = 0.0

    def __iter__(self) -> Iterator[Batch]:
        return self

    def close(self) -> None:
        """End the processes behind the batches, if there are any."""
        self.batches.close()

    def __next__(self) -> Batch:
        asked = time.perf_counter()
        batch = next(self.batches)
        self.waited += time.perf_counter() - asked
        return batch


class Pace:
    """Turns step results into metrics; the rates are those since the metrics before."""

    def __init__(self, plan: Plan, start: int) -> None:
        self.plan = plan
        self.started = self._time = time.perf_counter()
        self._step, self._waited = start, 0.0

    def elapsed(self) -> float:
        """Seconds since the first step of this process."""
        return time.perf_counter() - self.started

    def metrics(self, result: StepResult, waited: float) -> dict[str, Any]:
        """One line for metrics.jsonl. Reads the loss, so it waits for the device."""
        loss = float(result.loss)
        now = time.perf_counter()
        seconds, done = max(now - self._time, 1e-9), result.step - self._step
        values = {
            "step": result.step,
            "epoch": result.step * self.plan.batch_size / self.plan.images,
            "loss": loss,
            "lr": result.lr,
            "tau": result.tau,
            "images_per_second": done * self.plan.batch_size / seconds,
            "data_wait": (waited - self._waited) / seconds,
            "seconds_left": (self.plan.total_steps - result.step) * seconds / max(done, 1),
        }
        self._time, self._step, self._waited = now, result.step, waited
        return values

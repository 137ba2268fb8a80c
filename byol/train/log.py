"""What a run says while it runs: metrics.jsonl is the truth, the console shows it, bad_files.jsonl lists
unreadable images.
"""

import json
import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from byol.data.batches import Batches
from byol.disk import append_text, parse_json, write_text
from byol.errors import DataError, DiskError
from byol.train.plan import Plan
from byol.train.step import StepResult

if TYPE_CHECKING:
    from rich.progress import Progress

logger = logging.getLogger("byol")
# Between looks at the loss for people, each of which waits for the device: at the first, on a terminal, in
# a file.
FIRST_SECONDS, BAR_SECONDS, FILE_SECONDS = 3.0, 2.0, 10.0


class Pace:
    """How fast steps are done since it was last asked, and how much of that time the loop waited for
    images.
    """

    def __init__(self, plan: Plan, batches: Batches, step: int, clock: Callable[[], float]) -> None:
        self.plan, self.batches, self.clock = plan, batches, clock
        self.since = clock(), step, batches.waited

    def rates(self, step: int) -> dict[str, float]:
        """The rates up to a step; the next begin there."""
        then, first, before = self.since
        self.since = now, _, waited = self.clock(), step, self.batches.waited
        seconds, done = max(now - then, 1e-9), step - first
        return {
            "images_per_second": done * self.plan.batch_size / seconds,
            "data_wait": (waited - before) / seconds,
            "seconds_left": (self.plan.total_steps - step) * seconds / max(done, 1),
        }


class RunLog:
    """Writes metrics by steps and shows progress by time: a bar on a terminal, rate-limited plain lines
    elsewhere.
    """

    def __init__(
        self,
        path: Path,
        plan: Plan,
        start: int,
        batches: Batches,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path, self.plan, self.start, self.clock = path, plan, start, clock
        self.batches = batches
        self._began = clock()
        self._shown_at: float | None = None
        self._logged = Pace(plan, batches, start, clock)
        self._shown: Pace | None = None  # since the first step, which took the reading of the images too
        self._bar: Progress | None = None
        self._estimated = self._warned = False
        if (
            path.exists()
        ):  # steps that a resumed run does again, and a last line that a kill cut short, are forgotten
            kept = [values for values in whole_lines(path) if values["step"] <= start]
            write_text(path, "".join(json.dumps(values) + "\n" for values in kept))

    def __enter__(self) -> "RunLog":
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            self._bar = Progress(
                TextColumn("{task.completed:,.0f}/{task.total:,.0f}"),
                BarColumn(bar_width=None),
                TextColumn("{task.percentage:3.0f}% {task.description}"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
                expand=True,
            )
            self._bar.start()
            self._bar.add_task("reading images", total=self.plan.total_steps, completed=self.start)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        if self._bar is not None:
            with suppress(OSError):  # of a terminal that was closed
                self._bar.stop()

    def following(self, results: Iterable[StepResult]) -> Iterator[StepResult]:
        """Pass step results on and show how far they are."""
        for result in results:
            self.show(result)
            yield result

    def metrics(self, result: StepResult) -> dict[str, Any]:
        """What metrics.jsonl tells of a step. Reads the loss, so it waits for the device."""
        return {
            "step": result.step,
            "epoch": result.step * self.plan.batch_size / self.plan.images,
            "loss": float(result.loss),
            "lr": result.lr,
            "tau": result.tau,
            **self._logged.rates(result.step),
        }

    def write(self, values: dict[str, Any]) -> None:
        """Append one line of metrics, if there are any; a score is told at once."""
        if not values:
            return
        try:
            append_text(self.path, json.dumps(values) + "\n")
        except DiskError as failure:
            if not self._warned:
                logger.warning("Metrics are lost, training goes on: %s", failure)
            self._warned = True
        if "knn_top1" in values:
            online = f", online probe {100 * values['online_top1']:.1f} %" if "online_top1" in values else ""
            knn = f"kNN {100 * values['knn_top1']:.1f} %{online} of the hold-out set"
            self.say(f"{self._place(values['step'])}  {knn}")

    def show(self, result: StepResult) -> None:
        """Show that a step is done and, after some seconds, its loss and the speed."""
        now, step = self.clock(), result.step
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=step)
        first = self._shown is None
        if self._shown is None:
            self._shown = Pace(self.plan, self.batches, step, self.clock)
        pause = FILE_SECONDS if self._bar is None else BAR_SECONDS
        due = self._began + FIRST_SECONDS if self._shown_at is None else self._shown_at + pause
        if now < due and step < self.plan.total_steps:
            return
        self._shown_at = now
        loss = f"loss {float(result.loss):.3f}"  # waits for the device
        if first:
            rates, text = None, f"{self._place(step)}  {loss}"
        else:
            rates = self._shown.rates(step)
            speed = f"{rates['images_per_second']:,.0f} images/s"
            wait, left = f"{100 * rates['data_wait']:.0f}", duration(rates["seconds_left"])
            text = f"{self._place(step)}  {loss}  {speed}  waiting for data {wait} %  left {left}"
            loss += f"  {speed}" + (f"  waits {wait}%" if rates["data_wait"] >= 0.05 else "")
            if not self._estimated and step < self.plan.total_steps:
                self.say(f"time       about {left} more, by the first steps")
            self._estimated = True
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], description=loss)
        else:
            self.say(text)

    def say(self, line: str) -> None:
        """A line for people that is not a metric."""
        if self._bar is None:
            say(line)
            return
        with suppress(OSError):
            self._bar.console.print(line, markup=False, highlight=False)

    def _place(self, step: int) -> str:
        epoch = step * self.plan.batch_size / self.plan.images
        return f"step {step:,}/{self.plan.total_steps:,}  epoch {epoch:.1f}"


def say(line: str) -> None:
    """A line for people; a closed pipe or terminal ends the talking, not the training."""
    with suppress(OSError):
        print(line, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """Seconds as people say them: 45s, 12m 30s, 3h 05m."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    return f"{whole // 3600}h {whole % 3600 // 60:02d}m"


def whole_lines(path: Path) -> list[dict[str, Any]]:
    """What the lines of a JSON lines file say, without those that a kill or a full disk cut short."""
    values = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with suppress(ValueError):
            values.append(parse_json(line))
    return values


class BadImages:
    """Counts unreadable images, lists each once in bad_files.jsonl, and stops the run above the agreed
    share.
    """

    def __init__(self, path: Path, images: int, share: float) -> None:
        self.path, self.images, self.share = path, images, share
        self.reasons: dict[str, str] = {}
        if path.exists():
            entries = whole_lines(path)
            self.reasons = {entry["name"]: entry["reason"] for entry in entries}
            write_text(path, "".join(json.dumps(entry) + "\n" for entry in entries))

    def __call__(self, name: str, reason: str) -> None:
        """Take note of an image; raises DataError when more than the agreed share is unreadable."""
        if name in self.reasons:
            return
        self.reasons[name] = reason
        append_text(self.path, json.dumps({"name": name, "reason": reason}) + "\n")
        bad = len(self.reasons)
        if bad > self.share * self.images:
            raise DataError(
                f"{bad} of {self.images:,} images cannot be read, more than {100 * self.share:g} % (the "
                f"last: {reason}). They are listed in {self.path}. Remove them, or allow more with "
                "--data.max-bad."
            )

    def __str__(self) -> str:
        """For a run's last line."""
        bad = len(self.reasons)
        return f"; {bad:,} unreadable image{'s' * (bad != 1)}, listed in {self.path}" if bad else ""

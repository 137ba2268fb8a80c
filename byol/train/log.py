"""What a run says while it runs: metrics.jsonl is the truth, the console shows it, bad_files.jsonl lists unreadable images."""

import json
import logging
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from byol.disk import append_text, write_text
from byol.errors import DataError, DiskError
from byol.train.step import StepResult

if TYPE_CHECKING:
    from rich.progress import Progress

logger = logging.getLogger("byol")
PLAIN_SECONDS = 10.0  # at least, between lines of metrics where there is no terminal
FIRST_SECONDS, QUIET_SECONDS = (
    3.0,
    60.0,
)  # without a line, first and later, until one tells of the steps alone


class RunLog:
    """Appends metrics and shows progress: a bar on a terminal, rate-limited plain lines elsewhere."""

    def __init__(self, folder: Path, total_steps: int, start: int) -> None:
        self.path = folder / "metrics.jsonl"
        self.total_steps = total_steps
        self.start = start
        self._began = time.monotonic()
        self._first: tuple[int, float] | None = None  # the first step of this process and when it was done
        self._said_at: float | None = None  # the last line of metrics where there is no terminal
        self._told_at: float | None = None  # the last line of metrics or of steps alone
        self._bar: Progress | None = None
        self._warned = self._unheard = False
        forget_after(self.path, start)

    def __enter__(self) -> "RunLog":
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            self._bar = Progress(
                TextColumn("{task.completed:,.0f}/{task.total:,.0f}"), BarColumn(bar_width=None),
                TextColumn("{task.percentage:3.0f}%"), TextColumn("{task.description}"), TimeRemainingColumn(),
                console=Console(stderr=True), transient=True, expand=True,
            )  # fmt: skip
            self._bar.start()
            self._bar.add_task("starting", total=self.total_steps, completed=self.start)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        if self._bar is not None:
            with suppress(OSError):  # of a terminal that was closed
                self._bar.stop()

    def write(self, values: dict[str, Any]) -> None:
        """Append one line of metrics, if there are any, and show it."""
        if not values:
            return
        try:
            append_text(self.path, json.dumps(values) + "\n")
        except DiskError as failure:
            if not self._warned:
                logger.warning("Metrics are lost, training goes on: %s", failure)
            self._warned = True
        self._show(values)

    def following(self, results: Iterable[StepResult]) -> Iterator[StepResult]:
        """Pass step results on and show that each is done. No loss is read, which would wait for the device."""
        for result in results:
            self.advance(result.step)
            yield result

    def advance(self, step: int) -> None:
        """Move the bar; where there is none, a line for people when there has been none for long."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=step)
            return
        now = time.monotonic()
        first, first_at = self._first = self._first or (step, now)
        since, seconds = (
            (self._began, FIRST_SECONDS) if self._told_at is None else (self._told_at, QUIET_SECONDS)
        )
        if now - since >= seconds:
            self._told_at = now
            left = ""
            if step > first:  # the first took the reading of the images too
                left = (
                    f"  left about {duration((self.total_steps - step) * (now - first_at) / (step - first))}"
                )
            self.say(f"step {step:,}/{self.total_steps:,}{left}")

    def say(self, line: str) -> None:
        """A line for people that is no metric."""
        if self._unheard:
            return
        try:
            if self._bar is not None:
                self._bar.console.print(line, markup=False, highlight=False)
            else:
                print(line, file=sys.stderr, flush=True)
        except OSError:  # a closed pipe or terminal ends the talking, not the training
            self._unheard = True

    def _show(self, values: dict[str, Any]) -> None:
        if "loss" not in values and "knn_top1" not in values:
            return  # signs of health alone: for the file
        text = in_words(values, self.total_steps)
        if "knn_top1" in values:
            self.say(text)
        elif self._bar is not None:
            self._bar.update(
                self._bar.task_ids[0], completed=values["step"], description=beside_the_bar(values)
            )
        elif (
            self._said_at is None
            or time.monotonic() - self._said_at >= PLAIN_SECONDS
            or values["step"] == self.total_steps
        ):
            self._said_at = self._told_at = time.monotonic()
            self.say(text)


def in_words(values: dict[str, Any], total_steps: int) -> str:
    """One line of metrics for people."""
    place = f"step {values['step']:,}/{total_steps:,}  epoch {values['epoch']:.1f}"
    if "knn_top1" in values:
        online = f", online probe {100 * values['online_top1']:.1f} %" if "online_top1" in values else ""
        return f"{place}  kNN {100 * values['knn_top1']:.1f} %{online} of held-out images"
    return (
        f"{place}  loss {values['loss']:.3f}  {values['images_per_second']:,.0f} images/s  "
        f"waiting for data {100 * values['data_wait']:.0f} %  left {duration(values['seconds_left'])}"
    )


def beside_the_bar(values: dict[str, Any]) -> str:
    """The same, as short as a terminal of 80 columns wants it; waiting for images is told when it costs something."""
    waits = f"  waits {100 * values['data_wait']:.0f}%" if values["data_wait"] >= 0.05 else ""
    return f"loss {values['loss']:.3f}  {values['images_per_second']:,.0f} images/s{waits}"


def duration(seconds: float) -> str:
    """Seconds as people say them: 45s, 12m 30s, 3h 05m."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    return f"{whole // 3600}h {whole % 3600 // 60:02d}m"


def forget_after(path: Path, step: int) -> None:
    """Drop the lines of steps that a resumed run will do again, and a last line that was cut short by a kill."""
    if not path.exists():
        return
    kept = [values for values in whole_lines(path) if values["step"] <= step]
    write_text(path, "".join(json.dumps(values) + "\n" for values in kept))


def whole_lines(path: Path) -> list[dict[str, Any]]:
    """What the lines of a JSON lines file say, without those that a kill or a full disk cut short."""
    values = []
    for line in path.read_text().splitlines():
        with suppress(json.JSONDecodeError):
            values.append(json.loads(line))
    return values


class BadImages:
    """Counts unreadable images, lists each once in bad_files.jsonl, and stops the run above the agreed share."""

    def __init__(self, folder: Path, images: int, share: float) -> None:
        self.path = folder / "bad_files.jsonl"
        self.images, self.share = images, share
        self.reasons: dict[str, str] = {}
        if self.path.exists():
            entries = whole_lines(self.path)
            self.reasons = {entry["name"]: entry["reason"] for entry in entries}
            write_text(self.path, "".join(json.dumps(entry) + "\n" for entry in entries))

    def __call__(self, name: str, reason: str) -> None:
        """Take note of an image; raises DataError when more than the agreed share is unreadable."""
        if name in self.reasons:
            return
        self.reasons[name] = reason
        append_text(self.path, json.dumps({"name": name, "reason": reason}) + "\n")
        bad = len(self.reasons)
        if bad > self.share * self.images:
            raise DataError(
                f"{bad} of {self.images:,} images cannot be read, more than {100 * self.share:g} % "
                f"(the last: {reason}). They are listed in {self.path}. Remove them, or allow more with --data.max-bad."
            )

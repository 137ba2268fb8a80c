"""What a run says while it runs: metrics.jsonl is the truth, the console shows it, train.log keeps what was
said, bad_files.jsonl lists."""

import json
import logging
import math
import re
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from operator import itemgetter
from pathlib import Path
from time import strftime
from typing import Any

from byol.data.decode import BadImage
from byol.data.images import Images
from byol.data.samples import Samples
from byol.disk import append_text, json_lines, replacing, write_text
from byol.errors import DataError, DiskError, printable, show
from byol.train.loggers import Loggers
from byol.train.outcome import FEW, accuracy, is_look, state_so_far
from byol.train.plan import Plan
from byol.train.step import StepResult
from byol.train.stopwatch import PARTS, Stopwatch, from_metrics, to_metrics, whole_time

logger = logging.getLogger("byol")
# Between looks at the loss for people, which wait for the device: at the first, for a bar, in a file.
FIRST_SECONDS, BAR_SECONDS, FILE_SECONDS = 3.0, 2.0, 10.0
MOST_NUMBERS, LONGEST = 100, 2**16  # in a line of metrics; letters of what is no number
MOST_LOOKS = 2**12  # that are kept
Moment = tuple[float, int, float]  # seconds by the clock, steps done, seconds that images were waited for


class RunLog:
    """Writes metrics by steps and shows progress by time: a bar where it can move, lines elsewhere."""

    def __init__(
        self,
        path: Path,
        plan: Plan,
        start: int,
        watch: Stopwatch,
        loggers: Loggers | None = None,
        transcript: Path | None = None,
        time: Path | None = None,
    ) -> None:
        self.loggers, self.transcript = loggers, transcript
        self.path, self.plan, self.start, self.watch = path, plan, start, watch
        self.clock = watch.clock
        self._warned, self._done = False, start
        spent: dict[str, float] = {}  # before, on what is done again too

        def kept(values: Any) -> dict[str, Any] | None:
            if not sound(values, plan.total_steps):
                return None
            spent.update(from_metrics(values))
            # The others are done again; of a run without a checkpoint all are.
            return values if 0 < start >= int(values["step"]) and not tells_time_alone(values) else None

        self.looks = Thinned(MOST_LOOKS)
        self.recent: deque[dict[str, Any]] = deque(maxlen=3)  # of the other lines
        for line in tidied(path, kept):
            self._remember(line)
        watch.add(spent if time is None else whole_time(spent, time))
        self._logged = self._moment(start)  # of the metrics before
        self._known = known_by(self.lines)

    def _remember(self, line: dict[str, Any]) -> None:
        if is_look(line):
            self.looks.add(line)
        else:
            self.recent.append(line)

    @property
    def lines(self) -> list[dict[str, Any]]:
        """Those of metrics.jsonl that a verdict follows from; a long run has too many to keep them all."""
        return sorted([*self.recent, *self.looks], key=itemgetter("step"))

    @property
    def begin(self) -> dict[str, Any]:
        """What was seen before the first step; nothing where that is lost."""
        return next((line for line in self.lines if line["step"] == 0), {})

    def __enter__(self) -> "RunLog":
        from rich.console import Console

        from byol.train.bar import NotebookBar, in_a_notebook, progress_bar

        logger.addFilter(self._keep_warning)
        if self.loggers is not None:
            self.loggers.start(lambda: metrics_in(self.path, self.start))
        self._terminal, notebook = sys.stderr.isatty(), in_a_notebook()
        self._moves = self._terminal or notebook
        console = Console(stderr=True)
        self._bar: Any = NotebookBar() if notebook else progress_bar(console, shown=self._terminal)
        self._bar.start()
        total, parts = self.plan.total_steps, {"state": "reading images"}
        self._task = self._bar.add_task("", total=total, completed=self.start, parts=parts)
        return self

    def __exit__(self, kind: object, failure: object, traceback: object) -> None:
        if failure is not None:  # what the time since the last line was spent on, until the run is continued
            self.write({"step": self._done, "epoch": self.plan.epoch(self._done)})
        if self.loggers is not None:
            self.loggers.close(failed=kind is not None)
        logger.removeFilter(self._keep_warning)
        if failure is not None:
            self.keep(f"ended      {failure}" if str(failure) else f"ended      {type(failure).__name__}")
        if self._moves:
            with suppress(OSError):  # it may have been closed
                self._bar.stop()

    def following(self, results: Iterable[StepResult]) -> Iterator[StepResult]:
        """Pass step results on and show how far they are."""
        pause = BAR_SECONDS if self._moves else FILE_SECONDS
        due, estimated = self.clock() + FIRST_SECONDS, False
        kept = -math.inf  # when train.log was told last
        # Since the first step, which took the reading of the images too; and since the last words.
        begin: Moment | None = None
        shown: Moment | None = None
        for result in results:
            self.watch.begin("rest")
            self._done = step = result.step
            last = step == self.plan.total_steps
            self._bar.update(self._task, completed=step)
            if self.clock() >= due or last:
                due = self.clock() + pause
                parts = {"epoch": f"epoch {self.plan.epoch(step):.1f}"}
                parts["loss"] = f"loss {float(result.loss):.3f}"  # waits for the device
                left = {}
                if begin is not None and shown is not None:
                    rates = self._rates(shown, step)
                    parts["rate"] = f"{rates['images_per_second']:,.0f} images/s"
                    if rates["data_wait"] >= 0.05:
                        parts["waiting"] = f"waiting {rates['data_wait']:.0%}"
                    more = duration(self._rates(begin, step)["seconds_left"])
                    left = {"left": f"left {more}"}
                    if not estimated and not last:
                        self.say(f"time       about {more} more, by the first steps")
                    estimated, shown = True, None
                parts |= self._known | left
                self._bar.update(self._task, parts=parts)
                line = "  ".join([f"step {step:,}/{self.plan.total_steps:,}", *parts.values()])
                if not self._moves:
                    self.say(line)
                elif self.clock() >= kept + FILE_SECONDS or last:
                    kept = self.clock()
                    self.keep(line)
            begin = begin or self._moment(step)
            shown = shown or self._moment(step)
            yield result

    def metrics(self, result: StepResult) -> dict[str, Any]:
        """What metrics.jsonl tells of a step. Reads the loss, so it waits for the device."""
        step, loss = result.step, float(result.loss)
        rates, self._logged = self._rates(self._logged, step), self._moment(step)
        told = {"loss": loss, "lr": result.lr, "tau": result.tau}
        if result.gradient_norm is not None:
            told["gradient_norm"] = float(result.gradient_norm)
        return {"step": step, "epoch": self.plan.epoch(step), **told, **rates}

    def write(self, values: dict[str, Any]) -> None:
        """Append one line of metrics, with what the time was spent on; a score is told at once."""
        values = values | to_metrics(self.watch.seconds())
        self._remember(values)
        try:
            append_text(self.path, json.dumps(values) + "\n")
        except DiskError as failure:
            if not self._warned:
                logger.warning("Metrics are lost, training goes on: %s", failure)
            self._warned = True
        if self.loggers is not None:
            self.loggers.write(values)
        self._known = known_by(self.lines)
        if "representation_retrieval" in values:
            step, epoch = values["step"], f"epoch {self.plan.epoch(values['step']):.1f}"
            self.say(f"step {step:,}/{self.plan.total_steps:,}  {epoch}  {seen(values)}")

    def say(self, *lines: str) -> None:
        """Lines for people that are not metrics; above the bar, if there is one."""
        self.keep(*lines)
        if not self._terminal:
            say(*lines)
            return
        with suppress(OSError):
            self._bar.console.print(*map(printable, lines), sep="\n", markup=False, highlight=False)

    def keep(self, *lines: str) -> None:
        """Add lines to train.log."""
        if self.transcript is not None:
            keep(self.transcript, *lines)

    def _keep_warning(self, record: logging.LogRecord) -> bool:
        self.keep(f"warning    {record.getMessage()}")
        return True

    def _moment(self, step: int) -> Moment:
        return self.clock(), step, self.watch.seconds()["waiting"]

    def _rates(self, since: Moment, step: int) -> dict[str, float]:
        seconds, done = max(self.clock() - since[0], 1e-9), step - since[1]
        return {
            "images_per_second": done * self.plan.batch_size / seconds,
            "data_wait": (self.watch.seconds()["waiting"] - since[2]) / seconds,
            "seconds_left": (self.plan.total_steps - step) * seconds / max(done, 1),
        }


class Thinned:
    """Items in their order: all of a few, of very many the first and evenly spaced ones; and the last.

    Whoever wrote the file that they are from, no more than `most` are kept beside the `last`.
    """

    def __init__(self, most: int, last: int = 1) -> None:
        self.most, self.every, self.count = most, 1, 0
        self.kept: list[tuple[int, Any]] = []  # with their places
        self.last: deque[Any] = deque(maxlen=last)

    def add(self, item: Any) -> None:
        if self.count % self.every == 0:
            self.kept.append((self.count, item))
        self.last.append(item)
        self.count += 1
        if len(self.kept) > self.most:
            self.kept, self.every = self.kept[::2], 2 * self.every

    def __iter__(self) -> Iterator[Any]:
        last = self.count - len(self.last)
        yield from (item for place, item in self.kept if place < last)
        yield from self.last


def known_by(lines: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The last score and the verdict so far, in a word or two each, as far as there are any."""
    look = next((line for line in reversed(lines) if is_look(line)), None)
    if look is None:
        return {}
    if look.get("knn_images", 0) >= FEW:
        words = f"kNN {100 * look['knn_top1']:.1f} %"
    else:
        words = f"partners {100 * look['representation_retrieval']:.0f} %"
    state, ill = state_so_far(lines)
    return {"score": words} | ({"trouble" if ill else "verdict": state} if state else {})


def seen(look: dict[str, Any]) -> str:
    """A look in words: kNN where there are labels, else how many views find their partners."""
    if "knn_top1" not in look:
        found, views = look["representation_retrieval"], look["views"]
        return f"{100 * found:.0f} % of {views:,} views find their image's other view"
    also = {"pixels_top1": "raw pixels", "online_top1": "online probe"}
    others = [f", {what} {100 * look[name]:.1f} %" for name, what in also.items() if name in look]
    return accuracy(look) + "".join(others if look["knn_images"] >= FEW else [])


def keep(transcript: Path, *lines: str) -> None:
    """Add lines to a train.log, each with the time; those that cannot be written are left out."""
    now = strftime("%Y-%m-%d %H:%M:%S")
    with suppress(OSError):  # people see it all the same, and metrics warn of a full disk
        append_text(transcript, "".join(f"{now}  {printable(line)}\n" for line in lines))


def say(*lines: str) -> None:
    """Lines for people; a closed pipe or terminal ends the talking, not the training."""
    with suppress(OSError):
        show(*lines, file=sys.stderr)


def duration(seconds: float) -> str:
    """Seconds as people say them: 45s, 12m 30s, 3h 05m."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}m {rest:02d}s" if minutes else f"{rest}s"
    return f"{minutes // 60}h {minutes % 60:02d}m"


def sound(values: Any, start: int) -> bool:
    """Whether a line of metrics is of the steps up to `start`, and of numbers; accuracies are finite ones."""
    if not isinstance(values, dict) or len(values) > MOST_NUMBERS or "epoch" not in values:
        return False
    for name, value in values.items():
        if name.endswith("_right"):
            if not isinstance(value, str) or len(value) > LONGEST:
                return False
        elif not isinstance(value, int | float) or not (math.isfinite(value) or may_be_infinite(name)):
            return False  # of an absurd integer isfinite raises OverflowError
    return bool(values["step"] <= start)


def tells_time_alone(values: Mapping[str, Any]) -> bool:
    """Whether a line is the last of a run that was stopped: of its time, with no metric."""
    return values.keys() <= {"step", "epoch", *to_metrics(dict.fromkeys(PARTS, 0.0))}


def may_be_infinite(name: str) -> bool:
    """Whether a metric is told as it is, whatever it is; counts and accuracies are finite."""
    return not name.startswith(("step", "views", "images", "knn_")) and "top1" not in name


def metrics_in(path: Path, last: int) -> Iterator[dict[str, Any]]:
    """The sound lines of metrics.jsonl up to a step; those that a kill or the disk cut are passed over."""
    return json_lines(path, "epoch", lambda values: values if sound(values, last) else None)


def tidied(path: Path, kept: Callable[[Any], dict[str, Any] | None]) -> Iterator[dict[str, Any]]:
    """The lines of metrics.jsonl that are kept by a run that goes on; all others are taken out."""
    if not path.exists():
        return
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for line in json_lines(path, "epoch", kept):
            file.write(json.dumps(line) + "\n")
            yield line


class BadImages:
    """Counts unreadable images, lists each once, and stops the run above the agreed share.

    Those that an earlier part of the run listed are tried again, and all of them before it is stopped: a disk
    may have been away for a moment.
    """

    def __init__(self, path: Path, images: Images | Samples, share: float) -> None:
        self.path, self.images, self.share = path, images, share
        self.reasons: dict[str, str] = {}  # by the images' names
        listed = json_lines(path, "name", lambda x: x["name"] if isinstance(x["name"], str) else None)
        if path.exists():
            self._try_again({*islice(listed, len(images))})  # a run lists no more

    def __call__(self, name: str, reason: str) -> None:
        """Take note of an image; raises DataError when more than the agreed share is unreadable."""
        if name in self.reasons:
            return
        self.reasons[name] = reason
        append_text(self.path, self._line(name))
        most = self.share * len(self.images)
        if len(self.reasons) > most and isinstance(self.images, Images):
            self._try_again(set(self.reasons))
        if len(self.reasons) > most:
            bad = f"{len(self.reasons)} of {len(self.images):,} images cannot be read ({self._summary()})"
            where = f"more than {100 * self.share:g} %. They are listed in {self.path}"
            raise DataError(f"{bad}, {where}. Remove them, or allow more with --data.max-bad.")

    def _try_again(self, listed: set[str]) -> None:
        """Take what can be read by now off the list."""
        self.reasons = {}
        for row in range(len(self.images)) if listed else ():
            if isinstance(self.images, Images) and (name := self.images.name(row)) in listed:
                try:
                    self.images.array(row)
                except BadImage as failure:
                    self.reasons[name] = str(failure)
        write_text(self.path, "".join(map(self._line, self.reasons)))

    def __str__(self) -> str:
        """For a run's last line."""
        bad = len(self.reasons)
        some = f"{bad:,} unreadable image{'s' * (bad != 1)} ({self._summary()})"
        return f"; {some}, listed in {self.path}" if bad else ""

    def _line(self, name: str) -> str:
        return json.dumps({"name": name, "reason": self.reasons[name]}) + "\n"

    def _summary(self) -> str:
        """The commonest reasons with their counts, whatever the numbers in them."""
        counts = Counter(printable(re.sub(r"\d+", "N", one)) for one in self.reasons.values()).most_common()
        more = "; and other reasons" if len(counts) > 3 else ""
        return "; ".join(f"{count} x {reason}" for reason, count in counts[:3]) + more

"""Files of lines are read line by line: more memory than a part of them needs is never taken."""

import gc
import json
import tracemalloc
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from small_runs import small_config

import byol
from byol.evaluation.confusion import Confusion, read_confusions, write_confusion
from byol.report.record import metrics
from byol.train.log import BadImages, RunLog, metrics_in
from byol.train.plan import ImageFacts, Plan, plan_run
from byol.train.stopwatch import Stopwatch
from byol.world import World

SHORT, LONG = 17_000, 40_000  # lines: both more than a report keeps points of a curve
CONFUSION = Confusion("knn", "top1", 0.5, "", "00ff", ("ant", "bee"), ((0, 1, 5), (1, 1, 5)), ())


def plan_of(steps: int) -> Plan:
    facts = ImageFacts(8 * steps, (16, 16), 3, False)
    return plan_run(small_config(Path("runs"), epochs=1), facts, World.join("cpu"))


def step_lines(path: Path, count: int) -> None:
    rest = {"loss": 1.5, "lr": 0.1, "tau": 0.99, "images_per_second": 100.0, "data_wait": 0.0}
    lines = (json.dumps({"step": step, "epoch": 0.001 * step} | rest) + "\n" for step in range(1, count + 1))
    path.write_text("".join(lines))


def bad_lines(path: Path, count: int) -> None:
    lines = (json.dumps({"name": f"{row % 50}.png", "reason": "x" * 200}) + "\n" for row in range(count))
    path.write_text("".join(lines))


def mistake_lines(path: Path, count: int) -> None:
    path.unlink(missing_ok=True)
    write_confusion(CONFUSION, path)
    path.write_text(path.read_text() * count)


def of_a_run(path: Path, count: int) -> RunLog:
    log = RunLog(path, plan_of(LONG), count, Stopwatch())
    assert [line["step"] for line in log.lines] == [count - 2, count - 1, count]
    return log


def of_a_report(path: Path, count: int) -> Iterable[object]:
    lines = metrics(path, plan_of(LONG))
    steps = [line["step"] for line in lines]
    assert (steps[0], steps[-3:]) == (1, [count - 2, count - 1, count])
    assert 5_000 < len(steps) < SHORT
    return lines


def of_a_logger(path: Path, count: int) -> Iterable[object]:
    last = deque(metrics_in(path, LONG), maxlen=1)
    assert last[0]["step"] == count
    return last


def unreadable(path: Path, count: int) -> BadImages:
    bad = BadImages(path, byol.open_images(np.zeros((3, 8, 8, 3), np.uint8)), 0.1)
    assert path.read_text() == ""  # of images that these are not
    return bad


def mistakes(path: Path, count: int) -> Iterable[object]:
    found = read_confusions(path, [CONFUSION])
    assert [*found.values()] == [CONFUSION]
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("write", "read"),
    [
        (step_lines, of_a_run),
        (step_lines, of_a_report),
        (step_lines, of_a_logger),
        (bad_lines, unreadable),
        (mistake_lines, mistakes),
    ],
    ids=lambda one: one.__name__,
)
def test_a_file_of_more_lines_takes_no_more_memory(
    tmp_path: Path, write: Callable[[Path, int], None], read: Callable[[Path, int], object]
) -> None:
    write(tmp_path / "lines.jsonl", SHORT)
    read(tmp_path / "lines.jsonl", SHORT)  # which loads modules
    peaks = []
    for count in (SHORT, LONG):
        write(tmp_path / "lines.jsonl", count)
        gc.collect()
        tracemalloc.start()
        held = read(tmp_path / "lines.jsonl", count)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        del held
    assert peaks[1] < peaks[0] + 2**20

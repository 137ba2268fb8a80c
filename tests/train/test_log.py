"""What a run says while it runs: to a file, and to terminals of the usual widths."""

import fcntl
import json
import os
import pty
import re
import struct
import sys
import termios
import threading
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from small_runs import seeded, small_config, stopping

import byol
from byol.errors import Stopped
from byol.train.log import BadImages, RunLog, Thinned
from byol.train.outcome import PARTS, SIGNS
from byol.train.plan import ImageFacts, plan_run
from byol.train.step import StepResult
from byol.train.stopwatch import Stopwatch
from byol.world import World


class Clock:
    """Seconds that pass when the test says so."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def told(
    path: Path,
    steps: int,
    start: int,
    seconds: Iterable[float],
    log_every: int = 10**9,
    looks: Sequence[dict] = (),
) -> list[dict]:
    """Follow a run of batches of 8 images whose steps take so many seconds; returns its lines of metrics.

    The first look is at step 0, the others at the steps 100, 200 and so on.
    """
    clock = Clock()
    facts = ImageFacts(8 * steps, (16, 16), 3, False)
    plan = plan_run(small_config(path, epochs=1), facts, World.join("cpu"))
    assert plan.total_steps == steps
    watch = Stopwatch(clock=clock)

    def results() -> Iterable[StepResult]:
        for step, passed in enumerate(seconds, start + 1):
            watch.begin("waiting")
            clock.now += passed / 4
            watch.begin("online")
            clock.now += passed * 3 / 4
            yield StepResult(step, torch.tensor(1.25), 0.1, 0.99, None)

    with RunLog(path / "metrics.jsonl", plan, start, watch, transcript=path / "train.log") as log:
        for number, look in enumerate(looks):
            log.write({"step": 100 * number, "epoch": 0.0, **look})
        for result in log.following(results()):
            if result.step % log_every == 0:
                log.write(log.metrics(result))
    text = (path / "metrics.jsonl").read_text() if log_every < 10**9 else ""
    return [json.loads(line) for line in text.splitlines()]


def test_a_file_hears_of_the_loss_after_the_first_step_and_then_by_time(tmp_path, capsys):
    told(
        tmp_path, 1000, 10, [60.0, *[4.0] * 49]
    )  # the first step reads the images, which tells nothing of the others
    lines = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"step 11/1,000 .* loss 1\.250", lines[0])
    assert re.fullmatch(r"time +about 1h 05m more, .*", lines[1])
    assert re.fullmatch(r"step 14/1,000 .* loss 1\.250 .* 2 images/s .* waiting 25% .* left 1h 05m", lines[2])
    assert [line.split("/")[0] for line in lines[2:5]] == ["step 14", "step 17", "step 20"]


def test_progress_with_the_loss_is_told_within_five_seconds(tmp_path, capsys):
    """However many steps that are, and however rarely metrics are written."""
    told(tmp_path, 100_000, 0, [0.01] * 500)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[0] for line in lines] == ["time", "step"]
    assert "loss 1.250" in lines[1]
    assert "left" in lines[1]


def test_a_file_of_a_fast_run_holds_a_line_in_ten_seconds_and_one_for_the_last_step(tmp_path, capsys):
    metrics = told(tmp_path, 1200, 0, [1 / 32] * 1200, log_every=50)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("step")]
    assert [int(line.split("/")[0].removeprefix("step ").replace(",", "")) for line in lines] == [
        96, 416, 736, 1056, 1200,
    ]  # fmt: skip
    assert [line["step"] for line in metrics] == list(range(50, 1201, 50))
    assert all(line["images_per_second"] == pytest.approx(8 * 32) for line in metrics)
    assert all(line["data_wait"] == pytest.approx(0.25) for line in metrics)
    assert [line["seconds_left"] for line in metrics] == pytest.approx(
        [(1200 - line["step"]) / 32 for line in metrics]
    )


class Terminal:
    """Of so many columns; what was written to it is kept, as frames without escapes."""

    def __init__(self, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.parent, self.child = pty.openpty()
        fcntl.ioctl(self.child, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        monkeypatch.setenv("COLUMNS", str(columns))  # rich asks the process's own terminal first
        monkeypatch.setenv("TERM", "xterm")
        self.seen, self.monkeypatch = bytearray(), monkeypatch

    def __enter__(self) -> "Terminal":
        self.reader = threading.Thread(target=self.read)
        self.reader.start()
        self.file = open(self.child, "w")
        self.monkeypatch.setattr(sys, "stderr", self.file)
        return self

    def read(self) -> None:
        while part := drained(self.parent):
            self.seen.extend(part)

    def __exit__(self, *failure: object) -> None:
        self.file.close()
        self.reader.join()
        os.close(self.parent)

    def frames(self) -> list[str]:
        text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.seen.decode())
        return [line.rstrip() for line in re.split(r"[\r\n]+", text) if "/123,456" in line]


SOUND = {f"{part}_{sign}": 1.0 for part in PARTS for sign in SIGNS} | {"views": 512}
BETTER = SOUND | {
    "knn_top1": 0.8125,
    "knn_low": 0.7,
    "knn_high": 0.9,
    "knn_images": 400,
    "over_untrained_views_low": 0.2,
}
COLLAPSED = BETTER | {"representation_std": 0.001, "over_untrained_views_low": -0.2}


@pytest.mark.parametrize(
    ("columns", "told_there", "left_out"),
    [
        (40, "left 57s", "loss"),
        (80, "loss 1.250  waiting 25%  kNN 81.2 %  left 57s", "images/s"),
        (100, "loss 1.250  12,000 images/s  waiting 25%  kNN 81.2 %  left 57s", "learning"),
        (
            140,
            "32%  epoch 0.3  loss 1.250  12,000 images/s  waiting 25%  kNN 81.2 %  learning  left 57s",
            "†",
        ),
    ],
)
def test_the_bar_is_one_line_that_tells_most_of_what_matters_most(
    columns, told_there, left_out, tmp_path, monkeypatch
):
    with Terminal(columns, monkeypatch) as terminal:
        told(tmp_path, 123_456, 0, [1 / 1500] * 40_000, looks=(SOUND, BETTER))
    frames = terminal.frames()
    assert any("reading images" in frame for frame in frames)
    last = frames[-1]
    assert last.startswith("40,000/123,456")
    assert all(len(frame) <= columns for frame in frames)
    assert last.endswith(told_there)
    assert left_out not in last
    assert len(re.search("[━╸╺]+", last).group()) >= 9
    assert len({frame.split("/")[0] for frame in frames}) > 2  # it moves between what is said


def test_trouble_stays_in_the_bar_longer_than_anything_else(tmp_path, monkeypatch):
    with Terminal(50, monkeypatch) as terminal:
        told(tmp_path, 123_456, 0, [1 / 1500] * 40_000, looks=(SOUND, COLLAPSED))
    assert terminal.frames()[-1].endswith(" collapsed  left 57s")


def test_a_file_is_told_the_score_and_the_verdict_too(tmp_path, capsys):
    told(tmp_path, 100_000, 0, [0.01] * 500, looks=(SOUND, BETTER))
    line = capsys.readouterr().err.splitlines()[-1]
    assert re.fullmatch(
        r"step .*  epoch .*  loss 1.250  800 images/s  waiting 25%  kNN 81.2 %  learning  left .*", line
    )


def test_unreadable_images_are_summed_up_by_reason_without_escapes(tmp_path):
    bad = BadImages(tmp_path / "bad.jsonl", byol.open_images(np.zeros((9, 8, 8, 3), np.uint8)), share=1.0)
    reasons = "200 bytes are left", "\x1b", "90 bytes are left", "x", "3 bytes are left", "y"
    for name, reason in zip("abcdef", reasons, strict=True):
        bad(name, reason)
    summary = "3 x N bytes are left; 1 x \\x1b; 1 x x; and other reasons"
    assert f"6 unreadable images ({summary})" in str(bad)


STAMP = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  "


def test_train_log_keeps_what_was_said_over_all_parts_of_a_run(tmp_path, capsys, caplog):
    folder = tmp_path / "a\x1b[31m"
    images = np.random.default_rng(0).integers(0, 255, (80, 20, 20, 3), dtype=np.uint8)
    with pytest.raises(Stopped):
        byol.pretrain(stopping(seeded(), 12), images, small_config(folder))
    (folder / "tensorboard").write_text("in the way of a logger, which warns")
    byol.pretrain(seeded(), images, small_config(folder, log=("tensorboard",)))
    lines = (folder / "train.log").read_text(encoding="utf-8").splitlines()
    assert all(re.match(STAMP, line) for line in lines)
    kept = [re.sub(STAMP, "", line, count=1) for line in lines]
    said = capsys.readouterr().err.splitlines()
    printed = [line.replace("\x1b", "\\x1b") for line in said]
    assert [line for line in kept if not line.startswith(("ended", "warning"))] == printed
    assert sum(line.startswith("ended      Stopped by SIGTERM and saved at step") for line in kept) == 1
    assert [line for line in kept if line.startswith("warning    The logger tensorboard")] != []
    assert "\x1b" not in "".join(lines)
    assert sum(line.startswith("finished") for line in kept) == 1


def test_on_a_terminal_train_log_holds_a_line_in_ten_seconds(tmp_path, monkeypatch):
    parent, child = pty.openpty()
    reader = threading.Thread(target=lambda: [None for _ in iter(lambda: drained(parent), b"")])
    reader.start()
    with open(child, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        told(tmp_path, 1200, 0, [1 / 32] * 1200)
    reader.join()
    os.close(parent)
    kept = (tmp_path / "train.log").read_text(encoding="utf-8").splitlines()
    steps = [re.search(r"step ([\d,]+)/", line)[1] for line in kept if "loss" in line]
    assert 4 <= len(steps) <= 6
    assert steps[-1] == "1,200"


def drained(parent: int) -> bytes:
    try:
        return os.read(parent, 4096)
    except OSError:  # the terminal is gone
        return b""


def test_of_very_many_lines_evenly_spaced_ones_and_the_last_are_kept():
    few, many = Thinned(100, last=3), Thinned(100, last=3)
    for number in range(50):
        few.add(number)
    for number in range(100_000):
        many.add(number)
    assert [*few] == [*range(50)]
    assert [*many][:3] == [0, 1024, 2048]
    assert {b - a for a, b in pairwise([*many][:-3])} == {1024}
    assert [*many][-3:] == [99_997, 99_998, 99_999]

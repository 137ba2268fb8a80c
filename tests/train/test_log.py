"""What a run says while it runs: to a file, and to terminals of the usual widths."""

import fcntl
import os
import pty
import re
import struct
import sys
import termios
import threading

import pytest

from byol.train import log
from byol.train.log import RunLog

VALUES = {
    "step": 1200, "epoch": 1.5, "loss": 1.2345, "images_per_second": 12345.6, "data_wait": 0.12, "seconds_left": 5000.0,
}  # fmt: skip


def test_a_file_hears_of_a_slow_run_before_its_first_metrics_and_by_time(tmp_path, capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(log.time, "monotonic", lambda: now[0])
    with RunLog(tmp_path, 1000, 10) as run:
        now[0] += 60.0  # reading the images, which says nothing of the steps
        for step in range(11, 60):
            now[0] += 4.0
            run.advance(step)
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == ["step 11/1,000", "step 26/1,000  left about 1h 04m"]
    assert [line.split("/")[0] for line in lines] == ["step 11", "step 26", "step 41", "step 56"]


def test_a_file_of_a_fast_run_holds_metrics_only(tmp_path, capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(log.time, "monotonic", lambda: now[0])
    with RunLog(tmp_path, 1200, 0) as run:
        for step in range(1, 1201):
            now[0] += 1 / 32
            run.advance(step)
            if step % 50 == 0:
                run.write({**VALUES, "step": step})
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("/")[0] for line in lines] == [
        "step 50",
        "step 400",
        "step 750",
        "step 1,100",
        "step 1,200",
    ]
    assert all("loss 1.2" in line for line in lines)


@pytest.mark.parametrize("columns", [80, 120])
def test_the_bar_is_a_bar_that_moves_every_step(columns, tmp_path, monkeypatch):
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    monkeypatch.setenv("COLUMNS", str(columns))  # rich asks the process's own terminal first
    monkeypatch.setenv("TERM", "xterm")
    seen = bytearray()

    def read() -> None:
        try:
            while part := os.read(parent, 4096):
                seen.extend(part)
        except OSError:  # the terminal is gone
            return

    reader = threading.Thread(target=read)
    reader.start()
    with open(child, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        with RunLog(tmp_path, 123_456, 0) as run:
            run.write(VALUES)
            run._bar.refresh()
            run.advance(40_000)
            run._bar.refresh()
    reader.join()
    os.close(parent)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen.decode())
    frames = [line for line in re.split(r"[\r\n]+", text) if "/123,456" in line]
    assert any(frame.startswith("1,200/123,456") for frame in frames)
    last = frames[-1]
    assert last.startswith("40,000/123,456")
    assert len(last.rstrip()) <= columns
    assert "loss 1.234  12,346 images/s  waits 12%" in last
    assert len(re.search("[━╸╺]+", last).group()) >= (8 if columns == 80 else 40)

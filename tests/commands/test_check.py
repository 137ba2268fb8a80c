"""`byol check`: what scripts and people get of it."""

import csv
import json
import os
import signal
import time
from pathlib import Path

import forked
import numpy as np
import pytest
from PIL import Image

from byol.cli import main


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of six different pictures in two classes."""
    monkeypatch.chdir(tmp_path)
    for seed in range(6):
        path = Path("photos", "ab"[seed % 2], f"{seed}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(path)
    return Path("photos")


def test_the_exit_code_tells_whether_something_was_found(photos, capsys):
    assert main(["check", "photos", "--workers", "0"]) == 0
    assert "nothing" in capsys.readouterr().out
    (photos / "a" / "copy.png").write_bytes((photos / "b" / "1.png").read_bytes())
    assert main(["check", "photos", "--workers", "0"]) == 1
    said = capsys.readouterr().out
    assert "b/1.png: same as a/copy.png" in said
    assert "1 group has different labels" in said
    assert main(["check", "nowhere"]) == 3
    assert main(["check", "photos", "--tiny", "41", "--workers", "0"]) == 1
    assert main(["check", "photos", "--out", "found.txt"]) == 2
    assert main(["check", "photos", "--tiny", "0"]) == 2


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_fresh_start_is_not_said_to_continue(photos, capsys, workers):
    main(["check", "photos", "--workers", workers])
    assert "continued" not in capsys.readouterr().err


def test_files_list_every_image_concerned(photos, capsys):
    (photos / "a" / "bad\n.png").write_bytes(b"<html>")
    (photos / "a" / "copy.png").write_bytes((photos / "a" / "0.png").read_bytes())
    assert main(["check", "photos", "--out", "found.json"]) == 1
    assert "found.json, found.csv" in capsys.readouterr().out
    told = json.loads(Path("found.json").read_text())
    assert (told["images"], told["sound"], told["classes"]) == (8, False, {"a": 5, "b": 3})
    assert told["found"] == {
        "unreadable": 1, "truncated": 0, "duplicate": 1, "near-duplicate": 0, "tiny": 0, "extreme-shape": 0,
        "deep": 0, "cmyk": 0,
    }  # fmt: skip
    rows = list(csv.DictReader(Path("found.csv").read_text().splitlines()))
    assert {(row["path"], row["found"]) for row in rows} == {
        ("a/bad\\n.png", "unreadable"), ("a/copy.png", "duplicate"),
    }  # fmt: skip


@pytest.mark.skipif(
    not os.path.exists(f"/proc/self/task/{os.getpid()}/children"), reason="it is looked up there"
)
@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_ends_it_with_one_sentence_and_no_file(tmp_path, monkeypatch, number):
    noise = np.random.default_rng(0).integers(0, 256, (60_000, 8, 8, 3), dtype=np.uint8)
    np.save(tmp_path / "images.npy", noise)
    monkeypatch.chdir(tmp_path)
    said = tmp_path / "said"
    process = forked.command(["check", "images.npy", "--out", "found.json", "--workers", "2"], said)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while len(children.read_text().split()) < 2:  # the processes that decode; libraries start one, too
        assert process.is_alive()
        time.sleep(0.05)
    os.kill(process.pid, number)
    process.join(60)
    assert process.exitcode == (75 if number == signal.SIGTERM else 130), said.read_text()
    assert "of 60,000 images done" in said.read_text()
    assert "Traceback" not in said.read_text()
    assert sorted(os.listdir(tmp_path)) == ["images.npy", "said"]

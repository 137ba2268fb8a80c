"""Whatever a file says: a result or one sentence. More of the same: `python tests/hostile/fuzz.py --help`."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import fuzz
import pytest

import byol
from byol.machine import settle
from byol.train import outcome

MANY, FEW = 12, 4  # changes for each kind of file; few where each continues a run


@pytest.mark.slow
@pytest.mark.parametrize("name", fuzz.KINDS)
def test_a_damaged_file_is_a_result_or_one_sentence(name):
    found = fuzz.tried(name, range(FEW if fuzz.KINDS[name].read in (fuzz.go_on, fuzz.report) else MANY))
    assert not found, "\n".join(f"seed {seed}: {said}" for seed, said in found.items())


def filled_with(make, line: Callable[[int], bytes], size: int = 20 * 2**20):
    """What makes good files and then fills the one to be read with so many bytes of lines."""

    def filled(folder: Path) -> Path:
        path = make(folder)
        path.write_bytes(b"".join(map(line, range(size // len(line(10**6))))))
        return path

    return filled


METRICS, CONFUSIONS = "metrics.jsonl", "confusions.jsonl"
NUMBERS = (*outcome.LOOK, "step", "epoch", *map(str, range(80)))
LOOK = json.dumps(dict.fromkeys(NUMBERS, 1)).encode() + b"\n"


def mistakes(count: int, letters: int, scores: int) -> Callable[[Path], Path]:
    """What writes the mistakes of some scores, each of so many classes with names of so many letters."""

    def make(folder: Path) -> Path:
        path = fuzz.of_a_report(CONFUSIONS)(folder)
        known, score = (json.loads(x.read_text()) for x in (path, path.with_name("scores.jsonl")))
        known |= {"names": [f"{place:0{letters}}" for place in range(count)]}
        known |= {"cells": [[place, (place + by) % count, 1] for place in range(count) for by in range(10)]}
        ours = [{"data_set": str(number)} for number in range(scores)]
        path.write_text("".join(json.dumps(known | one) + "\n" for one in ours))
        path.with_name("scores.jsonl").write_text("".join(json.dumps(score | one) + "\n" for one in ours))
        return path

    return make


LONG = {
    "metrics of steps alone": (fuzz.of_a_run(METRICS), lambda n: b'{"step":0}\n', fuzz.go_on),
    "unreadable images": (fuzz.make_bad_files, lambda n: b'{"name":"%08d"}\n' % n, fuzz.go_on),
    "reported metrics of empty lines": (fuzz.of_a_report(METRICS), lambda n: b"\n", fuzz.report),
    "reported mistakes of nothing": (fuzz.of_a_report(CONFUSIONS), lambda n: b"{}\n", fuzz.report),
}


LARGE = {
    "looks": fuzz.Kind(filled_with(fuzz.of_a_run(METRICS), lambda n: LOOK, 50 * 2**20), fuzz.go_on),
    "reported looks": fuzz.Kind(
        filled_with(fuzz.of_a_report(METRICS), lambda n: LOOK, 50 * 2**20), fuzz.report
    ),
    "unreadable images": fuzz.Kind(
        filled_with(fuzz.make_bad_files, lambda n: b'{"name":"%07x"}\n' % n, 50 * 2**20), fuzz.go_on
    ),
    "mistakes of many classes": fuzz.Kind(mistakes(5000, 4, 40), fuzz.report),
    "mistakes of long names": fuzz.Kind(mistakes(20, 10**6, 1), fuzz.report),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_a_large_file_of_a_run_takes_little_memory_and_time(tmp_path, monkeypatch, name):
    monkeypatch.setitem(fuzz.KINDS, "tried here", LARGE[name])
    good = fuzz.prepared("tried here", tmp_path)
    assert fuzz.attempt(LARGE[name], good, tmp_path, seed=None) == ""


@pytest.mark.slow
@pytest.mark.parametrize("name", LONG)
def test_a_long_file_of_short_lines_takes_little_memory_and_time(tmp_path, monkeypatch, name):
    make, line, read = LONG[name]
    kind = fuzz.Kind(filled_with(make, line), read)
    monkeypatch.setitem(fuzz.KINDS, "tried here", kind)
    good = fuzz.prepared("tried here", tmp_path)
    assert fuzz.attempt(kind, good, tmp_path, seed=None) == ""


def eat(path: Path) -> None:
    hold = bytearray(700 * 2**20)
    hold[::4096] = b"x" * len(hold[::4096])


def misbehave(path: Path) -> None:
    os.system("true")


def stumble(path: Path) -> None:
    raise KeyError(path.name)


def refuse(path: Path) -> None:
    raise byol.DataError("It is damaged.")


def linger(path: Path) -> None:
    time.sleep(600)


def compute(path: Path) -> None:
    while True:
        pass


@pytest.mark.parametrize(
    ("reader", "said"),
    [
        (eat, "took"),
        (misbehave, "os.system"),
        (stumble, "KeyError"),
        (linger, "not done"),
        (compute, "not done"),
        (refuse, ""),
    ],
)
def test_whatever_goes_wrong_is_noticed(tmp_path, monkeypatch, reader, said):
    if reader is eat:  # a process that trained before keeps what it freed
        settle()
        held = bytearray(b"x") * (600 * 2**20)
        del held
    if reader is linger:
        monkeypatch.setattr(fuzz, "BUSY", 0.05)
    if reader is compute:
        monkeypatch.setattr(fuzz, "SECONDS", 0.5)
        monkeypatch.setattr(fuzz, "BUSY", 1000)
    kind = fuzz.Kind(fuzz.make_list, reader)
    monkeypatch.setitem(fuzz.KINDS, "tried here", kind)
    good = fuzz.prepared("tried here", tmp_path)
    found = fuzz.attempt(kind, good, tmp_path, seed=0)
    assert said in found
    assert bool(found) == bool(said)
    if reader is refuse:
        assert "DataError" in fuzz.attempt(kind, good, tmp_path, seed=None)

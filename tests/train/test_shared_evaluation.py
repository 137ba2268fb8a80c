"""`byol evaluate` by several processes, as torchrun starts them: the scores of one, written once."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from processes import run_byol, started, words as train_words

from byol.cli import main
from byol.evaluation import protocols
from byol.features.embed import SHARD

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
TRAINED = ["--epochs", "1", "--base-lrs", "0.1"]


@pytest.fixture(scope="module")
def words(arrays: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A run, and images that are three shards: of two processes the last has one more than it."""
    folder = tmp_path_factory.mktemp("evaluated")
    assert main(train_words(arrays, folder / "run", encoder="convnet", epochs=1, **{"model.width": 8})) == 0
    generator = np.random.default_rng(0)
    count = 2 * SHARD + 400
    labels = np.arange(count) % 3
    colours = 25 * np.eye(3, dtype=np.int64)[labels][:, None, None]
    images = (generator.integers(0, 200, (count, 8, 8, 3)) + colours).astype(np.uint8)
    for name, part in (("train", slice(0, count - 300)), ("test", slice(count - 300, None))):
        np.savez(folder / f"{name}.npz", images=images[part], labels=labels[part])
    return ["evaluate", f"{folder}/run", "--train", f"{folder}/train.npz", "--test", f"{folder}/test.npz"]


def scores(out: Path) -> list[dict]:
    """Those in a folder, without how long they took."""
    kept = [json.loads(line) for line in (out / "scores.jsonl").read_text().splitlines()]
    return [{name: value for name, value in one.items() if name != "seconds"} for one in kept]


@pytest.mark.parametrize(
    "more",
    [["--protocols", "knn", "linear"], ["--no-cache", "--protocols", "linear-sgd", "semi-10", *TRAINED]],
    ids=["features", "training"],
)
def test_several_processes_give_the_scores_of_one_and_tell_them_once(
    words: list[str], tmp_path: Path, more: list[str]
):
    for count in (1, 2):
        flags = [*words, "--out", str(tmp_path / str(count)), "--device", "cpu", *more]
        said = run_byol(count, flags, tmp_path / f"{count}.log")
    assert said.count("written  ") == 1
    assert said.count("process 0 alone runs the protocols") == 1
    assert len(scores(tmp_path / "1")) >= 2
    assert scores(tmp_path / "2") == scores(tmp_path / "1")


def dies(words: list[str]) -> int:
    """Process 0 is killed while it runs a protocol."""

    def killed(*given: object, **named: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    protocols.linear.fit = killed
    return main(words)


def test_a_process_that_is_killed_ends_those_that_wait_for_it(words: list[str], tmp_path: Path):
    with started(2, tmp_path / "log", dies, [*words, "--out", str(tmp_path / "o")]) as running:
        assert running.codes(120) == [-9, 70], running.said()
    assert "has ended or stands still" in running.said()


def test_what_process_0_fails_with_ends_all_and_is_told_once(words: list[str], tmp_path: Path):
    (tmp_path / "scores.jsonl").mkdir(parents=True)
    said = run_byol(2, [*words, "--no-cache", "--out", str(tmp_path)], tmp_path / "log", expected=2)
    assert said.count("byol evaluate: ") == 1
    assert "scores.jsonl" in said

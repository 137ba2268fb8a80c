"""Processes are killed, and any number of them continues: every image and view once, and the same bytes.

`python tests/train/test_kills.py 50` kills as often at random moments.
"""

import os
import random
import re
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import Small, run_byol, started, words
from safetensors.torch import load_file
from small_runs import small_config
from torch import Tensor, nn

import byol
from byol.cli import main
from byol.train.config import KnnConfig

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
# 6 epochs of 64 images in steps of 24, which split over 1, 2, 3 and 4 processes.
RUN = {"batch_size": 24, "knn__hold_out_share": 0, "save_every_steps": 3, "encoder": "test_kills:recorded"}
EPOCHS, IMAGES, BATCH = 6, 64, 24


class Recorded(Small):
    """Keeps the views of every training pass in a file named after the process and the pass."""

    passes = 0

    def forward(self, x: Tensor) -> Tensor:
        if self.training and torch.is_grad_enabled() and "RECORD" in os.environ:
            np.save(f"{os.environ['RECORD']}/{os.environ['RANK']}-{self.passes}.npy", x.detach().numpy())
            self.passes += 1
        return super().forward(x)


def recorded(channels: int, image_size: object) -> nn.Module:
    return Recorded(channels)


def steps_of(record: Path, ranks: list[int]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Both views of each step that all the processes have made, the rows in their order."""
    made = []
    for first in range(0, 1000, 2):
        files = [[record / f"{rank}-{first + view}.npy" for rank in ranks] for view in (0, 1)]
        if not all(file.exists() for view in files for file in view):
            break
        view1, view2 = (np.concatenate([np.load(file) for file in view]) for view in files)
        made.append((view1, view2))
    return made


def continued_at(log: Path) -> int:
    found = re.search(r"continued at step (\d+)", log.read_text())
    return int(found[1]) if found else 0


def state(out: Path) -> dict[str, Tensor]:
    return load_file(max((out / "checkpoints").glob("step-*")) / "state.safetensors")


@pytest.mark.parametrize("numbers", [(2, 1, 4), (2, 4, 3)], ids=str)
def test_killed_processes_are_continued_by_any_number_and_no_image_or_view_is_lost_or_comes_twice(
    arrays: Path, tmp_path: Path, numbers: tuple[int, ...]
):
    """Of the first two runs a process is killed (-9) in its fifth step; the third ends the run."""
    flags = words(arrays, tmp_path / "cut", **RUN)
    steps: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for attempt, count in enumerate(numbers):
        record, log = tmp_path / f"record-{attempt}", tmp_path / f"log-{attempt}"
        record.mkdir()
        last = attempt == len(numbers) - 1
        faults = {} if last else {"FAULT": "SIGKILL 9"}  # two passes a step
        one = {"RANK": "1"} if count == 1 else {}  # what the faults are for
        with started(count, log, main, flags, RECORD=str(record), **faults, **one) as running:
            codes = running.codes()
        assert (codes == [0] * count) == last, log.read_text()
        assert last or -9 in codes, log.read_text()
        start = continued_at(log)
        assert start == 3 * attempt  # of a run that was killed before step 5 after its start was done
        made = steps_of(record, [1] if count == 1 else [*range(count)])
        assert len(made) >= 4
        steps |= {start + number: views for number, views in enumerate(made)}  # the later ones count
    # The order, crops and views that one process makes, with the images' numbers.
    config = small_config(
        tmp_path / "alone", encoder="convnet", image_size=12, batch_size=BATCH, epochs=EPOCHS,
        knn=KnnConfig(hold_out_share=0, times=1),
    )  # fmt: skip
    loop = byol.prepare_loop(None, arrays, config)
    assert sorted(steps) == [*range(loop.plan.total_steps)] == [*range(EPOCHS * IMAGES // BATCH)]
    visited: list[int] = []
    for step in range(loop.plan.total_steps):
        batch = next(loop.batches)
        visited += batch.indices.tolist()
        for ours, theirs in zip(steps[step], (batch.view1, batch.view2), strict=True):
            np.testing.assert_allclose(ours, theirs.numpy(), rtol=0, atol=1e-5)
            assert len(np.unique(theirs.numpy().reshape(BATCH, -1), axis=0)) == BATCH  # none is another's
    for epoch in range(EPOCHS):
        assert sorted(visited[epoch * IMAGES : (epoch + 1) * IMAGES]) == [*range(IMAGES)]
    # And the weights are those of a run that made each of these steps once.
    run_byol(1, words(arrays, tmp_path / "whole", **RUN), tmp_path / "log")
    whole, cut = state(tmp_path / "whole"), state(tmp_path / "cut")
    assert whole.keys() == cut.keys()
    for name, value in whole.items():
        difference = (cut[name].double() - value.double()).norm()
        assert difference <= 1e-5 * value.double().norm().clamp(min=0.1), name


def kill_at_random(images: Path, folder: Path, kills: int, seed: int = 0, count: int = 2) -> int:
    """Start runs again and again, killing one of the processes at random moments, until `kills` have hit.

    Asserts that every run ends with the bytes of one that nobody disturbed. Returns the number of runs.
    """
    moments = random.Random(seed)
    flags = {"save_every_steps": 1, "keep_checkpoints": 2}
    began = time.monotonic()
    run_byol(count, words(images, folder / "whole", **flags), folder / "log")
    length = time.monotonic() - began
    expected = (folder / "whole" / "encoder.safetensors").read_bytes()
    hit = runs = 0
    while hit < kills or runs == 0:
        runs += 1
        out = folder / f"run-{runs}"
        while True:
            with started(count, folder / "log", main, words(images, out, **flags)) as running:
                victim = moments.choice(running.processes)
                if hit < kills:
                    victim.join(moments.uniform(0, length))
                    if victim.exitcode is None:
                        victim.kill()
                        hit += 1
                        running.codes(10)  # torchrun ends the others, if the one that is gone does not
                        for other in running.processes:
                            other.kill()
                codes, said = running.codes(), running.said()
            assert set(codes) <= {0, 70, -9}, said
            if codes == [0] * count:
                break
        assert (out / "encoder.safetensors").read_bytes() == expected, f"{seed=}, run {runs}: {said}"
        newest = max((out / "checkpoints").glob("step-*")).name
        final = [folder / "whole" / "checkpoints" / newest, out / "checkpoints" / newest]
        first, second = ((path / "state.safetensors").read_bytes() for path in final)
        assert first == second, f"{seed=}, run {runs}: {said}"
    return runs


def test_processes_killed_at_random_moments_end_with_the_same_bytes(arrays: Path, tmp_path: Path):
    kill_at_random(arrays, tmp_path, kills=4)


if __name__ == "__main__":
    generator = np.random.default_rng(1)
    with tempfile.TemporaryDirectory() as place:
        images = Path(place) / "images.npz"
        pixels = generator.integers(0, 256, (64, 20, 20, 3), dtype=np.uint8)
        np.savez(images, images=pixels, labels=np.arange(64) % 4)
        began = time.monotonic()
        runs = kill_at_random(images, Path(place), int(sys.argv[1]))
        seconds = time.monotonic() - began
        print(
            f"{sys.argv[1]} kills in {runs} runs that end with the undisturbed run's bytes: {seconds:.0f} s"
        )

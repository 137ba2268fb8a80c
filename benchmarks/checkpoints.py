"""What checkpoints cost: a step of ResNet-18 beside writing one, and their share at every 500 steps.

    python benchmarks/checkpoints.py --batch 32 --side 32 --folder DISK

The step is a run's own, with views and target update; the checkpoint is serialised, checked and synced to
the disk. They take turns, so that the machine's moods hit both. Smaller steps make the share larger: 32
images of 32 pixels are the least that anybody trains a ResNet-18 on.
"""

import argparse
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
from measure import machine, table

import byol
from byol.evaluation.online import ProbedLearner
from byol.train.checkpoint import Saver
from byol.train.config import ModelConfig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--every", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--folder", help="where checkpoints are written; by default a temporary folder")
    given = parser.parse_args()
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (4 * given.batch, given.side, given.side, 3), dtype=np.uint8)
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        config = byol.TrainConfig(
            folder, encoder="resnet18", image_size=given.side, batch_size=given.batch, epochs=1000,
            model=ModelConfig(stem="small"), device="cpu",
        )  # fmt: skip
        loop = byol.prepare_loop(None, images, config)
        saver = Saver(Path(folder, "checkpoints"), ProbedLearner(loop.learner), loop.optimizer, "", config)
        running = byol.steps(loop.learner, loop.batches, loop.optimizer, loop.plan)
        seconds: dict[str, list[tuple[float, float]]] = {"a step": [], "a checkpoint": []}
        for number in range(given.rounds + 1):
            save = partial(saver.save, number)
            for name, work in (("a step", running.__next__), ("a checkpoint", save)):
                for _ in range(5 if name == "a step" else 1):
                    began, spent = time.perf_counter(), time.process_time()
                    work()
                    if number:  # the first round warms up
                        seconds[name].append((time.perf_counter() - began, time.process_time() - spent))
        size = sum(path.stat().st_size for path in Path(folder).rglob("state.safetensors"))
        size //= len(list(Path(folder).rglob("state.safetensors")))
    middle = {name: [median(one) for one in zip(*found, strict=True)] for name, found in seconds.items()}
    rows = [[name, *(f"{value:.3f}" for value in both)] for name, both in middle.items()]
    shares = [save / (save + given.every * step) for step, save in zip(*middle.values(), strict=True)]
    rows.append([f"its share at every {given.every}", *(f"{100 * share:.2f} %" for share in shares)])
    print(machine())
    what = f"ResNet-18, {given.batch} images of {given.side} pixels, {loop.plan.precision}"
    table(f"{what}, checkpoints of {size / 1e6:.0f} MB", ("", "seconds", "of CPU"), rows)


if __name__ == "__main__":
    main()

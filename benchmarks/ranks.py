"""Two processes of one thread against one process of two: images a second of the same run on two CPU cores.

    python benchmarks/ranks.py [--encoder resnet18] [--batch-size 64] [--side 32] [--rounds 3]

Whole runs in turns, on a machine that does nothing else: a process waits for the other in each BatchNorm, and
a core that is busy elsewhere stops both.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import numpy as np
from measure import machine, table

LOGGED = 5  # steps between two lines of metrics; the first line, with all that warms up, is left out
WAYS = {"1 process x 2 threads": (1, 2), "2 processes x 1 thread": (2, 1)}


def run(images: Path, out: Path, processes: int, threads: int, flags: list[str]) -> float:
    """Images a second of a run, the median of its lines of metrics."""
    launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m", "byol"]
    words = [sys.executable, "-m", *(launcher if processes > 1 else ["byol"]), "train", str(images)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(
        [*words, "--out", str(out), *flags], env=environment, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(done.stderr)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return median(
        line["images_per_second"] for line in lines if line["step"] > LOGGED and "images_per_second" in line
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoder", default="resnet18")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=10, help="of 4 steps")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    flags = ["--encoder", given.encoder, "--image-size", str(given.side), "--device", "cpu", "--workers", "0"]
    flags += ["--batch-size", str(given.batch_size), "--epochs", str(given.epochs), "--precision", "fp32"]
    flags += ["--log-every-steps", str(LOGGED), "--knn.times", "1", "--knn.hold-out-share", "0"]
    flags += ["--on-collapse", "warn"]
    pixels = (4 * given.batch_size, given.side, given.side, 3)
    found: dict[str, list[float]] = {name: [] for name in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder, "images.npy")
        np.save(images, np.random.default_rng(0).integers(0, 256, pixels, dtype=np.uint8))
        for number in range(given.rounds):
            for name, (processes, threads) in WAYS.items():
                out = Path(folder, f"{processes}-{number}")
                found[name].append(run(images, out, processes, threads, flags))
    one, two = (median(rates) for rates in found.values())
    print(machine())
    rows = [(name, ", ".join(f"{rate:.1f}" for rate in rates)) for name, rates in found.items()]
    what = f"{given.encoder}, {given.batch_size} images of {given.side} pixels a step, fp32"
    table(what, ("", "images/s"), [*rows, ("the second of the first", f"{two / one:.3f}")])


if __name__ == "__main__":
    main()

"""Scale: listing up to a million files, the memory of the index, the first batch; memory over many steps.

python benchmarks/scale.py [--files 1000000] [--steps 2000]    # an inode per file in the temporary folder
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from measure import machine, table
from PIL import Image

OPEN = """
import json, resource, sys, time
def memory():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
import torch
from byol import Views, open_images
from byol.data.batches import BatchPlan, streamed_batches
before, started = memory(), time.perf_counter()
images = open_images(sys.argv[1])
listed, after = time.perf_counter() - started, memory()
plan = BatchPlan(0, len(images), 256, 1, Views(64))
batches = streamed_batches(
    images, plan, device=torch.device("cpu"), workers=2, steps=range(0, 2), report=print
)
next(batches)
print(json.dumps({"listing": listed, "memory": after - before, "first": time.perf_counter() - started}))
batches.close()
"""


def files(folder: Path, count: int) -> None:
    """So many names of one small picture, 1,000 to a folder; hard links where the file system lets them."""
    picture = folder / "picture.jpg"
    Image.fromarray(np.random.default_rng(0).integers(256, size=(96, 128, 3), dtype=np.uint8)).save(picture)
    root = folder / "images"
    source, data = picture, picture.read_bytes()
    for number in range(count):
        if number % 1000 == 0:
            place = root / f"class-{number // 1000 % 10}" / f"{number // 1000:05}"
            place.mkdir(parents=True)
        name = place / f"a-photograph-{number:07}.jpg"
        try:
            os.link(source, name)
        except OSError:  # too many links to one file: go on with another
            source = name
            name.write_bytes(data)


def opening(count: int) -> list[str]:
    """Listing time, memory of the index, time to the first batch of 256 at this number of files."""
    with tempfile.TemporaryDirectory() as name:
        files(Path(name), count)
        command = [sys.executable, "-c", OPEN, str(Path(name, "images"))]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        result = json.loads(done.stdout.splitlines()[-1])
    return [
        f"{count:,}",
        f"{result['listing']:.2f}",
        f"{result['memory'] / 1e6:.0f}",
        f"{result['first']:.1f}",
    ]


def resident(pid: int) -> int:
    """Bytes of memory a process holds now."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def memory_over(steps: int) -> None:
    """Resident memory of `byol train` early and late in a run of so many steps."""
    with tempfile.TemporaryDirectory() as name:
        pixels = np.random.default_rng(0).integers(256, size=(4096, 32, 32, 3), dtype=np.uint8)
        np.save(f"{name}/images.npy", pixels)
        flags = [
            "--encoder",
            "convnet",
            "--model.width",
            "16",
            "--batch-size",
            "64",
            "--epochs",
            str(steps * 64 / 4096),
        ]
        command = [
            sys.executable,
            "-m",
            "byol",
            "train",
            f"{name}/images.npy",
            "--out",
            f"{name}/run",
            *flags,
        ]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        seen: list[tuple[int, int]] = []
        log = Path(name, "run", "metrics.jsonl")
        while process.poll() is None:
            time.sleep(0.5)
            lines = log.read_text().splitlines() if log.exists() else []
            if lines and process.poll() is None:
                seen.append((json.loads(lines[-1])["step"], resident(process.pid)))
        early = max(bytes for step, bytes in seen if step <= steps // 5)
        late = max(bytes for step, bytes in seen if step > steps // 5)
    print(
        f"\nresident memory over {steps:,} steps: {early / 1e6:.0f} MB in the first fifth, "
        f"{late / 1e6:.0f} MB after: ",
        end="",
    )
    print(f"{100 * (late / early - 1):+.1f} %")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--steps", type=int, default=2000)
    given = parser.parse_args()
    print(machine("pillow"))
    counts = [count for count in (1_000, 10_000, 100_000, 1_000_000) if count <= given.files]
    header = ["files", "listing s", "index MB", "first batch s"]
    table("opening a folder", header, [opening(count) for count in counts])
    memory_over(given.steps)


if __name__ == "__main__":
    main()

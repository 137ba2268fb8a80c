"""Tar shards against loose files: how long until the first batch, and images a second from then on.

    python benchmarks/shards.py --images 100000    # JPEG tiles of 32 pixels, as loose files and as shards
    python benchmarks/shards.py --images 1000000 --only shards
    python benchmarks/shards.py --images 2000 --side 300 --served 20 50

The last measures shards against the same ones from a web server that answers after 20 ms, with 50 MB a second
in all, as object storage does.

Each is measured in processes of their own, in turns, after the operating system has let go of the files.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path

import torch
from PIL import Image

from byol.data.batches import BatchPlan, streamed_batches
from byol.data.demo_images import photograph_tiles
from byol.data.images import open_images
from byol.data.pack import member
from byol.method.views import Views

sys.path.append(str(Path(__file__).parents[1] / "tests" / "data"))
from range_server import serving

EACH = 5000
BATCH = 256


def pictures(side: int) -> list[bytes]:
    found = []
    for tile in photograph_tiles().train[:2000]:
        stream = BytesIO()
        Image.fromarray(tile).resize((side, side), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=90)
        found.append(stream.getvalue())
    return found


def write(folder: Path, kind: str, images: int, side: int) -> None:
    """The same images in the same order, as files in folders of 1,000 or as shards."""
    some = pictures(side)
    for first in range(0, images, EACH):
        numbers = range(first, min(first + EACH, images))
        if kind == "shards":
            with open(folder / f"{first // EACH:05}.tar", "wb") as file:
                for number in numbers:
                    file.write(member(f"{number:08}.jpg", some[number % len(some)]))
            continue
        for number in numbers:
            path = folder / f"{number // 1000:04}" / f"{number:08}.jpg"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(some[number % len(some)])


def forget(folder: Path) -> None:
    """Have the operating system read the files from the disk again."""
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def measure(source: str, workers: int, batches: int) -> None:
    """Prints seconds of opening, seconds until the first batch, images a second after it, seconds of CPU."""
    torch.set_num_threads(1)
    began = time.perf_counter()
    images = open_images(source)
    opened = time.perf_counter()
    plan = BatchPlan(0, len(images), BATCH, 1, Views(32), windows=images.windows())
    cropped = streamed_batches(
        images, plan, device=torch.device("cpu"), workers=workers, steps=range(batches + 1), report=print
    )
    next(cropped)
    first = time.perf_counter()
    for _ in range(batches):
        next(cropped)
    end = time.perf_counter()
    cropped.close()
    cpu = sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print(len(images), opened - began, first - began, BATCH * batches / (end - first), cpu)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--only", choices=("files", "shards"))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batches", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", help="where the images are written; by default a temporary folder")
    parser.add_argument("--served", nargs=2, type=float, metavar=("MS", "MB_PER_S"))
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        measure(given.measure, given.workers, given.batches)
        return
    kinds = (given.only,) if given.only else ("shards",) if given.served else ("files", "shards")
    with tempfile.TemporaryDirectory(dir=given.folder) as root, ExitStack() as stack:
        os.environ["XDG_CACHE_HOME"] = str(Path(root, "cache"))
        for kind in kinds:
            folder = Path(root, kind)
            folder.mkdir()
            write(folder, kind, given.images, given.side)
        sources = {kind: str(Path(root, kind)) for kind in kinds}
        if given.served:
            shards = Path(root, "shards")
            delay, rate = given.served[0] / 1000, given.served[1] * 1e6
            address = stack.enter_context(serving(shards, delay=delay, rate=rate))
            last = len(list(shards.glob("*.tar"))) - 1
            sources["served"] = f"{address}/{{00000..{last:05}}}.tar"
        print(
            f"{'':8} {'images':>10} {'opened, s':>10} {'first batch, s':>15} {'images/s':>10} {'CPU, s':>8}"
        )
        for number in range(given.rounds):
            for kind, source in sources.items():
                forget(Path(root))
                words = [sys.executable, __file__, "--measure", source]
                words += ["--workers", str(given.workers), "--batches", str(given.batches)]
                done = subprocess.run(words, check=True, capture_output=True, text=True)
                count, opened, first, rate, cpu = map(float, done.stdout.split())
                note = "  (its index was made)" if kind != "files" and number == 0 else ""
                print(f"{kind:8} {count:10,.0f} {opened:10.2f} {first:15.2f} {rate:10,.0f} {cpu:8.1f}{note}")


if __name__ == "__main__":
    main()

"""Peak memory of a run on 50,000 small images against 5,000: it should grow by the images, no more.

python benchmarks/memory.py [IMAGES.parquet]    # its rows as .npy and parquet; else random pixels
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

COUNTS = (5_000, 50_000)
STEPS, BATCH = 20, 64
PEAK = """
import resource, subprocess, sys
subprocess.run([sys.executable, "-m", "byol", *sys.argv[1:]], check=True, stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)  # Linux counts in KiB
"""


def peak(images: Path, count: int, out: Path) -> int:
    """Bytes of resident memory a short run needs at most."""
    flags = [*("train", str(images), "--out", str(out), "--encoder", "convnet", "--model.width", "8")]
    flags += [
        "--epochs",
        str(STEPS * BATCH / count),
        "--batch-size",
        str(BATCH),
        "--model.projection-hidden-size",
        "64",
    ]
    return int(
        subprocess.run(
            [sys.executable, "-c", PEAK, *flags], check=True, capture_output=True, text=True
        ).stdout
    )


def write(folder: Path, given: Path | None) -> dict[str, list[Path]]:
    """The same images in both numbers, by kind of file."""
    if given is None:
        pixels = np.random.default_rng(0).integers(256, size=(COUNTS[-1], 32, 32, 3), dtype=np.uint8)
    else:
        import pyarrow.parquet as pq

        from byol import open_images

        images, table = open_images(given), pq.read_table(given)
        pixels = np.stack([images.array(index) for index in range(COUNTS[-1])])
    files: dict[str, list[Path]] = {"npy": [], "parquet": []}
    for count in COUNTS:
        files["npy"].append(folder / f"{count}.npy")
        np.save(files["npy"][-1], pixels[:count])
        if given is not None:
            files["parquet"].append(folder / f"{count}.parquet")
            pq.write_table(table.slice(0, count), files["parquet"][-1], row_group_size=1000)
    return files


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for kind, files in write(folder, Path(sys.argv[1]) if len(sys.argv) > 1 else None).items():
            if not files:
                continue
            few, many = (
                peak(path, n, folder / f"out-{kind}-{n}") for path, n in zip(files, COUNTS, strict=True)
            )
            images = (COUNTS[1] - COUNTS[0]) * 32 * 32 * 3
            print(
                f"{kind:8} peak {few / 2**20:.0f} and {many / 2**20:.0f} MiB: "
                f"grew by {(many - few) / 2**20:.1f}, ",
                end="",
            )
            print(f"the images by {images / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()

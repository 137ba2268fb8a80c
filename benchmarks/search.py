"""Searching a file of a million rows: seconds, peak memory, beside the bare product and scikit-learn.

python benchmarks/search.py [--rows 1000000] [--threads 2]
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from measure import alternate, machine, table

from byol.features.neighbours import near_duplicates, outliers, search
from byol.features.select import clusters, pick

DIMENSIONS, QUERIES, K = 256, 100, 10
ALONE = """
import sys, time
import numpy as np, torch
import byol
torch.set_num_threads(int(sys.argv[2]))
byol.search, byol.Features
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024
before, started = peak(), time.perf_counter()
features = byol.Features.load(sys.argv[1], mapped=sys.argv[3] == "mapped")
byol.search(features, query=np.array(features.x[:100]), k=10)
print(time.perf_counter() - started, peak() - before)
"""


def bare(x: torch.Tensor, queries: torch.Tensor) -> None:
    """The floor: rows that have length 1 already, one product and one top-k a block."""
    for block in x.split(16_384):
        (queries @ block.T).topk(K, dim=1)


def in_memory(x: np.ndarray) -> None:
    """A search beside its floor and scikit-learn."""
    from sklearn.neighbors import NearestNeighbors

    queries = x[:QUERIES].copy()
    unit = torch.nn.functional.normalize(torch.from_numpy(x), dim=1)
    model = NearestNeighbors(n_neighbors=K, metric="cosine", algorithm="brute").fit(x)
    ways = {
        "bare product and top-k": lambda: bare(unit, unit[:QUERIES]),
        "byol.search": lambda: search(x, queries, k=K),
        "scikit-learn": lambda: model.kneighbors(queries),
    }
    seconds = alternate(ways, repeats=3)
    least = seconds["bare product and top-k"]
    lines = [[name, f"{value:.2f}", f"{value / least:.2f}"] for name, value in seconds.items()]
    table(
        f"{QUERIES} queries, {K} of {len(x):,} x {DIMENSIONS} in memory",
        ["", "seconds", "over the floor"],
        lines,
    )


def from_file(x: np.ndarray, threads: int) -> None:
    """A process that loads a file and searches it: its time after the imports, and the memory it needs."""
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "features.npy"
        np.save(path, x)
        for how in ("mapped", "loaded"):
            command = [sys.executable, "-c", ALONE, str(path), str(threads), how]
            runs = [
                subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
                for _ in range(3)
            ]
            seconds, mebibytes = (sorted(float(run[column]) for run in runs)[1] for column in range(2))
            lines.append(
                [f"Features.load(mapped={how == 'mapped'})", f"{seconds:.2f}", f"{mebibytes:,.0f} MiB"]
            )
    size = f"{len(x):,} x {DIMENSIONS} ({x.nbytes / 2**20:,.0f} MiB)"
    title = f"load and search {size} in a file, {QUERIES} queries"
    table(title, ["", "seconds", "peak memory"], lines)


def all_with_all(x: np.ndarray) -> None:
    """What compares every row with every other, and the choices."""
    tensor = torch.from_numpy(x)
    ways = {
        "bare products, all with all": lambda: [part @ tensor.T for part in tensor.split(256)],
        "near_duplicates": lambda: near_duplicates(x, 0.97),
        "outliers": lambda: outliers(x, 10),
        "pick 100": lambda: pick(x, 100),
        "clusters 100": lambda: clusters(x, 100),
    }
    lines = []
    for name, way in ways.items():
        started = time.perf_counter()
        way()
        lines.append([name, f"{time.perf_counter() - started:.1f}"])
    table(f"{len(x):,} x {x.shape[1]}", ["", "seconds"], lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print(machine("scikit-learn"))
    x = np.random.default_rng(0).standard_normal((given.rows, DIMENSIONS), dtype=np.float32)
    in_memory(x)
    from_file(x, given.threads)
    all_with_all(x[:20_000].copy())


if __name__ == "__main__":
    main()

"""Judging: kNN beside the bare matrix product and top-k, logistic regression beside scikit-learn, embedding a folder.

python benchmarks/judging.py [PHOTOS/] [--large]    # --large adds 1.28 million x 2048 (13 GB on disk, streamed)
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from measure import alternate, machine, table

from byol import build_encoder, open_images
from byol.evaluation import linear
from byol.evaluation.knn import knn_predict
from byol.features.extract import embed
from byol.weights.files import Encoder, EncoderInfo

CLASSES, BLOCK = 10, 256


def floor(bank: torch.Tensor, queries: torch.Tensor, k: int = 20) -> None:
    """Normalised rows already: a product and a top-k, block by block."""
    for block in queries.split(BLOCK):
        (block @ bank.T).topk(k, dim=1)


def knn(rows: int, dimensions: int, queries: int) -> None:
    """kNN in memory over its floor."""
    generator = torch.Generator().manual_seed(0)
    bank, asked = (torch.randn(count, dimensions, generator=generator) for count in (rows, queries))
    labels = torch.randint(CLASSES, (rows,), generator=generator)
    normal = [torch.nn.functional.normalize(x, dim=1) for x in (bank, asked)]
    ways = {"bare product and top-k": lambda: floor(*normal), "byol kNN": lambda: knn_predict(bank, labels, asked)}
    seconds = alternate(ways, repeats=3)
    least = seconds["bare product and top-k"]
    lines = [[name, f"{value:.2f}", f"{value / least:.2f}"] for name, value in seconds.items()]
    table(f"kNN, {queries:,} queries against {rows:,} x {dimensions}", ["", "seconds", "over the floor"], lines)


def streamed_knn(folder: Path, rows: int = 1_280_000, dimensions: int = 2048, queries: int = 1000) -> None:
    """kNN against a bank that is a file, in blocks."""
    generator = np.random.default_rng(0)
    path = folder / "bank.npy"
    bank = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(rows, dimensions))
    for first in range(0, rows, 10_000):
        bank[first : first + 10_000] = generator.standard_normal((min(10_000, rows - first), dimensions), dtype=np.float32)
    labels = torch.from_numpy(generator.integers(CLASSES, size=rows))
    asked = torch.from_numpy(generator.standard_normal((queries, dimensions), dtype=np.float32))
    stored = torch.from_numpy(np.load(path, mmap_mode="r+"))
    started = time.perf_counter()
    knn_predict(stored, labels, asked)
    seconds = time.perf_counter() - started
    lines = [["byol kNN", f"{seconds:.1f}", f"{queries / seconds:.0f}"]]
    table(f"kNN, {queries:,} queries against {rows:,} x {dimensions} in a file", ["", "seconds", "queries/s"], lines)


def logistic_regression(rows: int = 50_000, dimensions: int = 512, values: int = 5) -> None:
    """A sweep of l2 values and the last fit, beside scikit-learn's for the same values on the same cores."""
    from sklearn.linear_model import LogisticRegression

    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(CLASSES, dimensions, generator=generator)
    y = torch.randint(CLASSES, (rows,), generator=generator)
    x = 0.15 * directions[y] + torch.randn(rows, dimensions, generator=generator)
    chosen = [linear.L2[int(i)] for i in np.linspace(0, len(linear.L2) - 1, values)]

    def ours() -> None:
        linear.fit(x, y, CLASSES, l2=chosen)

    def sklearn() -> None:
        standard = ((x - x.mean(0)) / x.std(0)).numpy()
        held_out = int(linear.HELD_OUT * rows)
        for l2 in chosen:  # their C is one over the sum's penalty, ours is the mean's
            LogisticRegression(C=1 / (l2 * (rows - held_out)), max_iter=300).fit(standard[held_out:], y[held_out:])
        LogisticRegression(C=1 / (chosen[0] * rows), max_iter=300).fit(standard, y)

    seconds = alternate({"byol": ours, "scikit-learn": sklearn}, repeats=1)
    lines = [[name, f"{value:.1f}", f"{value / seconds['byol']:.1f}"] for name, value in seconds.items()]
    table(f"logistic regression, {rows:,} x {dimensions}, {values} l2 values", ["", "seconds", "ours is faster by"], lines)


def embedding(folder: str) -> None:
    """Images per second from files to features."""
    net = build_encoder("resnet18")
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    info = EncoderInfo.of(net, "resnet18", {}, image_size=(224, 224), channels=3, mean=mean, std=std, features=512)
    encoder, images = Encoder(net, info).eval(), open_images(folder)
    batch = torch.rand(len(images), 3, 224, 224)

    def bare() -> None:
        with torch.no_grad():
            encoder.net(batch)

    seconds = alternate({"bare encoder": bare, "byol embed": lambda: embed(encoder, images)}, repeats=3)
    lines = [[name, f"{len(images) / value:.1f}", f"{value / seconds['bare encoder']:.2f}"] for name, value in seconds.items()]
    table(f"embedding {len(images)} photographs, ResNet-18 at 224", ["", "images/s", "over the encoder"], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", nargs="?")
    parser.add_argument("--large", action="store_true")
    given = parser.parse_args()
    print(machine("scikit-learn"))
    knn(50_000, 512, 10_000)
    logistic_regression()
    if given.photos:
        embedding(given.photos)
    if given.large:
        with tempfile.TemporaryDirectory() as name:
            streamed_knn(Path(name))


if __name__ == "__main__":
    main()

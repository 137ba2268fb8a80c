"""Judging: kNN beside the bare product and top-k, logistic regression beside scikit-learn, embedding.

python benchmarks/judging.py [PHOTOS/] [--features TRAIN.npz TEST.npz] [--large]

--features takes what `byol embed` wrote instead of made-up features; --large adds 1.28 million x 2048
(13 GB on disk).
"""

import argparse
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from measure import alternate, machine, table

from byol import build_encoder, open_images
from byol.encoders.encoder import Encoder, EncoderInfo
from byol.evaluation import linear
from byol.evaluation.knn import knn_predict
from byol.features.embed import Features, embed
from byol.method.hidden import HiddenLayer

CLASSES, BLOCK = 10, 256


def floor(bank: torch.Tensor, queries: torch.Tensor, k: int = 20) -> None:
    """Normalised rows already: a product and a top-k, block by block."""
    for block in queries.split(BLOCK):
        (block @ bank.T).topk(k, dim=1)


def knn(rows: int, dimensions: int, queries: int) -> None:
    """kNN in memory over its floor."""
    generator = torch.Generator().manual_seed(0)
    bank, vectors = (torch.randn(count, dimensions, generator=generator) for count in (rows, queries))
    labels = torch.randint(CLASSES, (rows,), generator=generator)
    normal = [torch.nn.functional.normalize(x, dim=1) for x in (bank, vectors)]
    ways = {
        "bare product and top-k": lambda: floor(*normal),
        "byol kNN": lambda: knn_predict(bank, labels, vectors),
    }
    seconds = alternate(ways, repeats=3)
    least = seconds["bare product and top-k"]
    lines = [[name, f"{value:.2f}", f"{value / least:.2f}"] for name, value in seconds.items()]
    table(
        f"kNN, {queries:,} queries against {rows:,} x {dimensions}", ["", "seconds", "over the floor"], lines
    )


def streamed_knn(folder: Path, rows: int = 1_280_000, dimensions: int = 2048, queries: int = 1000) -> None:
    """kNN against a bank that is a file, in blocks."""
    generator = np.random.default_rng(0)
    path = folder / "bank.npy"
    bank = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(rows, dimensions))
    for first in range(0, rows, 10_000):
        bank[first : first + 10_000] = generator.standard_normal(
            (min(10_000, rows - first), dimensions), dtype=np.float32
        )
    labels = torch.from_numpy(generator.integers(CLASSES, size=rows))
    vectors = torch.from_numpy(generator.standard_normal((queries, dimensions), dtype=np.float32))
    stored = torch.from_numpy(np.load(path, mmap_mode="r+"))
    started = time.perf_counter()
    knn_predict(stored, labels, vectors)
    seconds = time.perf_counter() - started
    lines = [["byol kNN", f"{seconds:.1f}", f"{queries / seconds:.0f}"]]
    table(
        f"kNN, {queries:,} queries against {rows:,} x {dimensions} in a file",
        ["", "seconds", "queries/s"],
        lines,
    )


def made_up(rows: int, dimensions: int, seed: int) -> Features:
    """Features that tell the class a little and repeat one another, as those of networks do."""
    shared, generator = torch.Generator().manual_seed(99), torch.Generator().manual_seed(seed)
    directions = torch.randn(CLASSES, dimensions, generator=shared)
    mixing = (
        torch.randn(dimensions, dimensions, generator=shared) * torch.logspace(0, -2, dimensions)[:, None]
    )
    y = torch.randint(CLASSES, (rows,), generator=generator)
    x = (0.15 * directions[y] + torch.randn(rows, dimensions, generator=generator)) @ mixing
    return Features(x.numpy(), y.numpy())


def logistic_regression(train: Features, test: Features, every: int = 5) -> None:
    """The sweep of 45 l2 values and the last fit, beside scikit-learn's: of the sweep every fifth value.

    scikit-learn stops after its usual 100 iterations, which for small l2 is before the end; the accuracy at
    the chosen l2 is compared with its after as many as it needs.
    """
    from sklearn.linear_model import LogisticRegression

    assert train.y is not None
    assert test.y is not None
    x, y, test_x = (torch.from_numpy(part) for part in (train.x, train.y, test.x))
    started = time.perf_counter()
    classifier = linear.fit(x, y)
    seconds = {"byol": time.perf_counter() - started}
    standard, test_standard = (((part - classifier.mean) / classifier.std).numpy() for part in (x, test_x))
    validation = int(linear.VALIDATION * len(x))
    values = linear.L2[::every]

    def sklearn(
        l2: float, first: int, **options: float
    ) -> LogisticRegression:  # their C is of the sum, our l2 of the mean
        return LogisticRegression(C=1 / (l2 * (len(x) - first)), **options).fit(standard[first:], y[first:])

    started = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it has not converged
        for l2 in values:
            sklearn(l2, validation)
    seconds[f"scikit-learn, {len(values)} of them"] = measured = time.perf_counter() - started
    seconds["scikit-learn, so all 45"] = measured * len(linear.L2) / len(values)
    lines = [[name, f"{value:.1f}", f"{value / seconds['byol']:.1f}"] for name, value in seconds.items()]
    table(
        f"logistic regression, {len(x):,} x {x.shape[1]}, 45 l2 values",
        ["", "seconds", "ours is faster by"],
        lines,
    )
    expected = sklearn(classifier.l2, 0, max_iter=5000, tol=1e-6)
    ours, theirs = classifier.predict(test_x)[:, 0].numpy(), expected.predict(test_standard)
    lines = [
        [name, f"{100 * (found == test.y).mean():.2f} %"]
        for name, found in (("byol", ours), ("scikit-learn", theirs))
    ]
    lines.append(["same class", f"{100 * (ours == theirs).mean():.2f} %"])
    table(f"accuracy at the chosen l2 {classifier.l2:.3g}", ["", "test images"], lines)


def votes(train: Features, test: Features, k: int = 20, temperature: float = 0.07) -> None:
    """kNN predictions beside those of scikit-learn's brute force."""
    from sklearn.neighbors import KNeighborsClassifier

    assert train.y is not None
    ours = knn_predict(
        *map(torch.from_numpy, (train.x, train.y, test.x)), k=k, temperature=temperature
    ).numpy()
    model = KNeighborsClassifier(
        k, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / temperature)
    )
    theirs = model.fit(train.x, train.y).predict(test.x)
    lines = [["same class", f"{(ours == theirs).sum():,} of {len(ours):,}"]]
    table(f"kNN, k {k}, temperature {temperature}, beside scikit-learn", ["", "test images"], lines)


def embedding(folder: str) -> None:
    """Images per second from files to features."""
    net = HiddenLayer(build_encoder("resnet18"))
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    info = EncoderInfo.of(
        net, "resnet18", {}, image_size=(224, 224), channels=3, mean=mean, std=std, features=512
    )
    encoder, images = Encoder(net, info).eval(), open_images(folder)
    batch = torch.rand(len(images), 3, 224, 224)

    def bare() -> None:
        with torch.no_grad():
            net(batch)

    seconds = alternate({"bare encoder": bare, "byol embed": lambda: embed(encoder, images)}, repeats=3)
    lines = [
        [name, f"{len(images) / value:.1f}", f"{value / seconds['bare encoder']:.2f}"]
        for name, value in seconds.items()
    ]
    table(
        f"embedding {len(images)} photographs, ResNet-18 at 224", ["", "images/s", "over the encoder"], lines
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos", nargs="?")
    parser.add_argument("--features", nargs=2, metavar=("TRAIN", "TEST"))
    parser.add_argument("--large", action="store_true")
    given = parser.parse_args()
    print(machine("scikit-learn"))
    knn(50_000, 512, 10_000)
    paths = given.features
    sets = (
        [Features.load(path) for path in paths]
        if paths
        else [made_up(50_000, 512, 0), made_up(10_000, 512, 1)]
    )
    votes(*sets)
    logistic_regression(*sets)
    if given.photos:
        embedding(given.photos)
    if given.large:
        with tempfile.TemporaryDirectory() as name:
            streamed_knn(Path(name))


if __name__ == "__main__":
    main()

"""Runs to report on, of pictures and labels with names that try to be more than names."""

import csv

import numpy as np
import pytest
from PIL import Image
from reading import CLASSES

from byol.cli import main

TINY = (
    "--encoder convnet --model.width 2 --image-size 16 --batch-size 16 --device cpu --workers 0 "
    "--model.projection-hidden-size 32 --log-every-steps 2 --knn.hold-out-share 0.5 --knn.k 3"
)


@pytest.fixture(scope="session")
def hostile(tmp_path_factory):
    """120 pictures of three colours with a table of their labels: its path."""
    root, generator = tmp_path_factory.mktemp("hostile"), np.random.default_rng(0)
    with (root / "labels.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["path", "label"])
        for number in range(120):
            pixels = generator.integers(0, 60, (20, 24, 3))
            pixels[:, :, number % 3] += 180
            name = f"<img src=x onerror=alert({number})>.png"
            Image.fromarray(pixels.astype(np.uint8)).save(root / name)
            table.writerow([name, CLASSES[number % 3]])
    return root / "labels.csv"


@pytest.fixture(scope="session")
def runs(tmp_path_factory, hostile):
    """Two finished runs; the folders' names are markup."""
    folders = []
    for name, seed in (("<script>alert(1)<", "0"), ("b", "1")):
        folder = tmp_path_factory.mktemp("runs") / name / "script>"
        flags = ["--out", str(folder), "--seed", seed, "--epochs", str(6 + int(seed)), *TINY.split()]
        assert main(["train", str(hostile), *flags]) == 0
        folders.append(folder)
    return folders

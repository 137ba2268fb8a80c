"""The pictures that the small runs train on."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 PNG pictures of two classes and several sizes."""
    root = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for label in ("dark", "light"):
        (root / label).mkdir()
        for number in range(20):
            height, width = 24 + number % 5, 30 - number % 7
            pixels = generator.integers(0, 128, (height, width, 3)) + (100 if label == "light" else 0)
            Image.fromarray(pixels.astype(np.uint8)).save(root / label / f"{number}.png")
    return root


@pytest.fixture(scope="session")
def arrays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 small images in one .npz file, with labels."""
    path = tmp_path_factory.mktemp("arrays") / "small.npz"
    generator = np.random.default_rng(1)
    labels = np.arange(64) % 4
    images = generator.integers(0, 100, (64, 20, 20, 3)) + 40 * labels[:, None, None, None]
    np.savez(path, images=images.astype(np.uint8), labels=labels)
    return path

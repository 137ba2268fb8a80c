"""Labelled pictures and a finished run, for the commands that need them."""

import numpy as np
import pytest
from PIL import Image
from tiny import TINY

from byol.cli import main


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """24 pictures in three folders: red, green, blue."""
    root = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for number, name in enumerate(("red", "green", "blue")):
        (root / name).mkdir()
        for i in range(8):
            pixels = generator.integers(0, 60, (20, 20, 3))
            pixels[:, :, number] += 180
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def run(tmp_path_factory, labelled):
    out = tmp_path_factory.mktemp("run") / "a"
    assert main(["train", str(labelled), "--out", str(out), *TINY.split()]) == 0
    return out

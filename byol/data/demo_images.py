"""The images of `byol demo`: tiles of the photographs that ship inside scikit-image and scikit-learn.

The question to an encoder is which photograph a tile comes from. Training tiles and test tiles share no
pixel: each photograph is cut into squares, every fourth square is for the test, and a tile lies inside one
square.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from byol.errors import ConfigError

PHOTOGRAPHS = {  # by the package and the folder in it
    "skimage/data": "astronaut.png brick.png camera.png cell.png chelsea.png clock_motion.png coffee.png "
    "coins.png grass.png gravel.png hubble_deep_field.jpg ihc.png moon.png motorcycle_left.png retina.jpg "
    "rocket.jpg",
    "sklearn/datasets/images": "china.jpg flower.jpg",
}
TILE = 32  # pixels, side of a tile
SQUARE = 48  # pixels, side of a square that is for training or the test as a whole
SIDE = 480  # pixels, shorter side that larger photographs are scaled to
TRAIN_TILES, TEST_TILES = 240, 60  # per photograph


@dataclass(frozen=True)
class Tiles:
    """Tiles of photographs and the photograph each comes from."""

    train: np.ndarray[Any, np.dtype[np.uint8]]  # (N, 32, 32, 3)
    train_labels: np.ndarray[Any, np.dtype[np.int64]]
    test: np.ndarray[Any, np.dtype[np.uint8]]
    test_labels: np.ndarray[Any, np.dtype[np.int64]]
    names: tuple[str, ...]  # of the photographs


def photograph_tiles(seed: int = 0) -> Tiles:
    """The same tiles for the same seed. Raises ConfigError when the photographs are not installed."""
    from PIL import Image

    train, test, names = [], [], []
    for number, path in enumerate(photograph_paths()):
        with Image.open(path) as file:
            photograph = file.convert("RGB")
        scale = min(1, SIDE / min(photograph.size))
        photograph = photograph.resize((round(photograph.width * scale), round(photograph.height * scale)))
        pixels = np.asarray(photograph)
        generator = np.random.default_rng((seed, number))
        for_test = squares_of(pixels, generator)
        train.append(tiles_of(pixels, ~for_test, TRAIN_TILES, generator))
        test.append(tiles_of(pixels, for_test, TEST_TILES, generator))
        names.append(path.stem)
    labels = np.arange(len(names))
    return Tiles(
        np.concatenate(train),
        labels.repeat(TRAIN_TILES),
        np.concatenate(test),
        labels.repeat(TEST_TILES),
        tuple(names),
    )


def photograph_paths() -> list[Path]:
    """The photographs' files, found without importing the libraries that carry them."""
    paths = []
    for folder, names in PHOTOGRAPHS.items():
        package, within = folder.split("/", 1)
        spec = find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise ConfigError(
                f"The demo's photographs ship inside {package}, which is missing. Run: "
                "pip install 'byol[demo]'"
            )
        paths += [Path(spec.submodule_search_locations[0]) / within / name for name in names.split()]
    if missing := [path.name for path in paths if not path.exists()]:
        raise ConfigError(
            f"This scikit-image or scikit-learn ships no {', '.join(missing)}. "
            "Run: pip install --upgrade 'byol[demo]'"
        )
    return paths


def squares_of(
    pixels: np.ndarray[Any, Any], generator: np.random.Generator
) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which squares of a photograph are for the test: bool (rows, columns), one in four, drawn at random."""
    rows, columns = pixels.shape[0] // SQUARE, pixels.shape[1] // SQUARE
    drawn = np.zeros(rows * columns, dtype=bool)
    drawn[generator.permutation(rows * columns)[: rows * columns // 4]] = True
    return drawn.reshape(rows, columns)


def tiles_of(
    pixels: np.ndarray[Any, Any], squares: np.ndarray[Any, Any], count: int, generator: np.random.Generator
) -> np.ndarray[Any, Any]:
    """Tiles (count, 32, 32, 3) at random places inside the marked squares."""
    places = np.argwhere(squares)
    corners = places[generator.integers(len(places), size=count)] * SQUARE
    corners += generator.integers(SQUARE - TILE + 1, size=(count, 2))
    return np.stack([pixels[top : top + TILE, left : left + TILE] for top, left in corners])

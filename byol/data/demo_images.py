"""The images of `byol demo`: tiles of the photographs that ship inside scikit-image and scikit-learn.

The question to an encoder is which photograph a tile comes from. Training tiles and test tiles share no
pixel: each photograph is cut into squares, every fourth square is for the test, and a tile lies inside one
square.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from byol.errors import ConfigError

Pixels = np.ndarray[Any, np.dtype[np.uint8]]  # that of decode, which loads torch
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


class Tiles(NamedTuple):
    """Tiles of photographs and the photograph each comes from."""

    train: Pixels  # (N, 32, 32, 3)
    train_labels: np.ndarray[Any, np.dtype[np.int64]]
    test: Pixels
    test_labels: np.ndarray[Any, np.dtype[np.int64]]
    names: tuple[str, ...]  # of the photographs


def photograph_tiles(seed: int = 0) -> Tiles:
    """The same tiles for the same seed. Raises ConfigError when the photographs are not installed."""
    from PIL import Image

    train, test, paths = [], [], photograph_paths()
    for number, path in enumerate(paths):
        with Image.open(path) as file:
            photograph = file.convert("RGB")
        scale = min(1, SIDE / min(photograph.size))
        photograph = photograph.resize((round(photograph.width * scale), round(photograph.height * scale)))
        tiles = cut_tiles(np.asarray(photograph), np.random.default_rng((seed, number)))
        train.append(tiles[0])
        test.append(tiles[1])
    numbers, names = np.arange(len(paths)), tuple(path.stem for path in paths)
    tested, labels = np.concatenate(test), numbers.repeat(TEST_TILES)
    seen = {tile.tobytes() for tile in np.concatenate(train)}
    new = [tile.tobytes() not in seen for tile in tested]  # black corners look alike wherever they are cut
    return Tiles(np.concatenate(train), numbers.repeat(TRAIN_TILES), tested[new], labels[new], names)


def cut_tiles(pixels: Pixels, generator: np.random.Generator) -> list[Pixels]:
    """Tiles (N, 32, 32, ...) for training and for the test, at random places in squares of their own."""
    rows, columns = pixels.shape[0] // SQUARE, pixels.shape[1] // SQUARE
    for_test = np.zeros(rows * columns, dtype=bool)
    for_test[generator.permutation(rows * columns)[: rows * columns // 4]] = True
    parts = []
    for marked, count in ((~for_test, TRAIN_TILES), (for_test, TEST_TILES)):
        places = np.argwhere(marked.reshape(rows, columns))
        corners = places[generator.integers(len(places), size=count)] * SQUARE
        corners += generator.integers(SQUARE - TILE + 1, size=(count, 2))
        parts.append(np.stack([pixels[top : top + TILE, left : left + TILE] for top, left in corners]))
    return parts


def photograph_paths() -> list[Path]:
    """The photographs' files, found without importing the libraries that carry them."""
    paths, install = [], "pip install --upgrade 'byol[demo]'"
    for folder, names in PHOTOGRAPHS.items():
        package, within = folder.split("/", 1)
        spec = find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise ConfigError(f"The demo's photographs are in {package}, which is missing. Run: {install}")
        paths += [Path(spec.submodule_search_locations[0]) / within / name for name in names.split()]
    if missing := [path.name for path in paths if not path.exists()]:
        raise ConfigError(f"This scikit-image or scikit-learn ships no {', '.join(missing)}. Run: {install}")
    return paths

"""The demo's tiles: drawn from the seed, and what is tested on shares no pixel with what is trained on."""

import subprocess
import sys

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from pictures import arrays

from byol.data.demo_images import SQUARE, TILE, Tiles, cut_tiles, photograph_paths, photograph_tiles
from byol.data.images import open_images


@pytest.fixture(scope="module")
def tiles() -> Tiles:
    return photograph_tiles()


def test_tiles_are_labelled_images(tiles: Tiles) -> None:
    classes = len(tiles.names)
    assert classes == len(set(tiles.names)) == len(photograph_paths()) >= 10
    for pixels, labels in ((tiles.train, tiles.train_labels), (tiles.test, tiles.test_labels)):
        assert (pixels.shape[1:], pixels.dtype, len(pixels)) == ((TILE, TILE, 3), np.uint8, len(labels))
        counts = np.bincount(labels, minlength=classes)
        assert counts.min() > 0.8 * counts.max()  # about as many of each photograph
    assert not {tile.tobytes() for tile in tiles.train} & {tile.tobytes() for tile in tiles.test}


def test_tiles_follow_from_the_seed(tiles: Tiles) -> None:
    again, other = photograph_tiles(), photograph_tiles(seed=1)
    assert np.array_equal(again.train, tiles.train)
    assert np.array_equal(again.test, tiles.test)
    assert not np.array_equal(other.train, tiles.train)
    assert not np.array_equal(other.test, tiles.test)


@pytest.mark.parametrize("seed", range(5))
def test_train_and_test_tiles_share_no_pixel(seed: int) -> None:
    height, width = 480, 700
    places = np.arange(height * width).reshape(height, width)  # every pixel tells where it lies
    train, test = cut_tiles(places, np.random.default_rng(seed))
    assert train.shape[1:] == test.shape[1:] == (TILE, TILE)
    squares = [{*zip(*divmod(part[:, 0, 0], width), strict=True)} for part in (train, test)]
    used = [{(top // SQUARE, left // SQUARE) for top, left in part} for part in squares]
    assert len(used[1]) <= len(used[0] | used[1]) / 4 + 1  # a quarter of the squares is for the test
    assert np.intersect1d(train, test).size == 0
    offset = train - train[:, :1, :1]
    assert (offset == places[:TILE, :TILE]).all()  # a tile is a stretch of the photograph
    assert (
        len(np.unique(train[:, 0, 0] % width % SQUARE)) == SQUARE - TILE + 1
    )  # at every place within a square


@pytest.mark.parametrize("name", ["gravel", "grass"])
def test_no_patch_of_a_test_tile_was_seen_in_training(name: str, tiles: Tiles) -> None:
    """Rough photographs have no two equal patches by chance, so an overlap would show."""
    number = tiles.names.index(name)

    def patches(pixels: np.ndarray) -> set[bytes]:
        gray = np.ascontiguousarray(pixels[..., 0])
        return {patch.tobytes() for patch in sliding_window_view(gray, (8, 8), axis=(1, 2)).reshape(-1, 8, 8)}

    train = patches(tiles.train[tiles.train_labels == number])
    test = patches(tiles.test[tiles.test_labels == number])
    assert len(test) > 10_000
    assert not train & test


def test_tiles_open_as_images(tiles: Tiles) -> None:
    images = open_images(tiles.train, labels=tiles.train_labels)
    assert (len(images), images.channels, images.uniform_size()) == (len(tiles.train), 3, (TILE, TILE))
    assert np.array_equal(arrays(images.subset([0, 5, len(images) - 1])), tiles.train[[0, 5, -1]])


def test_the_photographs_are_found_without_importing_their_libraries() -> None:
    script = """
import sys
from byol.data.demo_images import photograph_paths
assert all(path.stat().st_size > 1000 for path in photograph_paths())
assert not {"skimage", "sklearn", "scipy", "torch"} & set(sys.modules), sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr

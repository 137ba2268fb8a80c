"""`inspect` finds what was put into a folder, and nothing else."""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import scipy.fft
from pictures import PHOTOS, encoded, photo, png_16
from PIL import Image

from byol.data.images import open_images
from byol.data.inspect import FAULTS, inspect, likeness


def names(images, rows) -> set[str]:
    return {images.name(row) for row in rows}


@pytest.fixture
def troubled(tmp_path: Path) -> Path:
    """A folder with some of everything."""
    root = tmp_path / "photos"
    for kind in ("cats", "dogs"):
        (root / kind).mkdir(parents=True)
    for seed in range(6):
        (root / "cats" / f"{seed}.png").write_bytes(encoded(photo(60, 80, seed)))
    whole = encoded(photo(60, 80, 7), "JPEG")
    made = {
        "dogs/noise.jpg": b"not a picture at all",
        "dogs/empty.jpg": b"",
        "dogs/cut.jpg": whole[: len(whole) // 2],
        "dogs/cut.png": encoded(photo(60, 80, 8))[:900],
        "dogs/copy.png": encoded(photo(60, 80, 3)),
        "dogs/again.jpg": encoded(photo(60, 80, 4), "JPEG", quality=60),
        "dogs/small.jpg": encoded(Image.fromarray(photo(60, 80, 4)).resize((72, 54)), "JPEG"),
        "dogs/tiny.png": encoded(photo(15, 15, 9)),
        "dogs/wide.png": encoded(photo(20, 90, 10)),
        "dogs/tall.png": encoded(photo(90, 20, 13)),
        "dogs/print.jpg": encoded(Image.fromarray(photo(60, 80, 11)).convert("CMYK"), "JPEG"),
        "dogs/deep.png": png_16(photo(60, 80, 12)[:, :, 0].astype(np.uint16) * 16),
    }
    for name, data in made.items():
        (root / name).write_bytes(data)
    return root


@pytest.mark.parametrize("workers", [0, 2])
def test_everything_wrong_in_a_folder_is_found_under_its_name(troubled: Path, workers: int) -> None:
    images = open_images(troubled)
    found = inspect(images, workers=workers)
    assert {kind: names(images, rows) for kind, rows in found.found.items()} == {
        "unreadable": {"dogs/noise.jpg", "dogs/empty.jpg"},
        "truncated": {"dogs/cut.jpg", "dogs/cut.png"},
        "duplicate": {"dogs/copy.png"},
        "near-duplicate": {"dogs/again.jpg", "dogs/small.jpg"},
        "tiny": {"dogs/tiny.png"},
        "extreme-shape": {"dogs/wide.png", "dogs/tall.png"},
        "deep": {"dogs/deep.png"},
        "cmyk": {"dogs/print.jpg"},
    }
    assert (found.images, found.classes) == (18, {"cats": 6, "dogs": 12})
    assert found.groups == {"duplicate": 1, "near-duplicate": 1}
    assert found.mixed == 2  # both groups hold a cat and dogs
    assert found.formats == {"PNG": 11, "JPEG": 3}
    assert found.modes["CMYK"] == 1
    assert found.sizes == {"height": [15, 60, 90], "width": [15, 80, 90]}
    assert found.deep is not None
    assert found.deep[1] <= 255 * 16
    assert "cats/3.png" in next(iter(found.found["duplicate"].values()))
    assert not found.sound


def test_a_sound_folder_is_called_sound(folder_of: Callable[..., Path]) -> None:
    found = inspect(open_images(folder_of(*(f"{n}.png" for n in range(5)))))
    assert found.sound
    assert all(not found.found[kind] for kind in FAULTS)
    assert found.classes is None


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP"])
def test_a_file_cut_in_the_middle_is_no_sound_image(tmp_path: Path, kind: str) -> None:
    data = encoded(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8), kind)
    (tmp_path / "whole.jpg").write_bytes(data)
    (tmp_path / "cut.jpg").write_bytes(data[: len(data) // 2])
    images = open_images(tmp_path)
    found = inspect(images).found
    assert names(images, [*found["truncated"], *found["unreadable"]]) == {"cut.jpg"}
    assert kind not in ("JPEG", "PNG", "BMP") or names(images, found["truncated"]) == {"cut.jpg"}


def test_arrays_are_inspected_too() -> None:
    found = inspect(open_images(np.concatenate([PHOTOS, PHOTOS[:2]])), tiny=8)
    assert list(found.found["duplicate"]) == [5, 6]
    assert found.formats == {"array": 7}


def test_blank_arrays_of_other_sides_are_not_the_same() -> None:
    blank = [np.zeros(shape, dtype=np.uint8) for shape in ((20, 30, 3), (30, 20, 3), (20, 30, 3))]
    assert list(inspect(open_images([(array, 0) for array in blank])).found["duplicate"]) == [2]


def test_a_thousand_copies_and_blank_pages_take_seconds() -> None:
    pages = np.zeros((3000, 16, 16, 3), dtype=np.uint8)
    pages[1000:] += (np.arange(2000) % 250).astype(np.uint8)[:, None, None, None]
    pages[2000:, 0, 0, 0] += 3  # nearly as those before
    found = inspect(open_images(pages))
    assert found.groups["duplicate"] > 0
    assert len(found.found["duplicate"]) + len(found.found["near-duplicate"]) >= 2900


def test_a_likeness_is_the_signs_of_the_lowest_frequencies() -> None:
    picture = Image.fromarray(photo(32, 32, 5))
    bits, colour = likeness(picture)
    pixels = np.asarray(picture, dtype=np.float64)
    coefficients = scipy.fft.dctn(pixels @ (0.299, 0.587, 0.114), norm="ortho")
    # 119 of the 128 have u + v of at most 14; nine others have 15
    least = sum(coefficients[u, v] > 3 for u in range(15) for v in range(15 - u) if u + v)
    ones = int(np.unpackbits(bits.view(np.uint8)).sum())
    assert least <= ones <= least + 9
    assert np.array_equal(colour, pixels.mean(axis=(0, 1)).round())


def test_other_pictures_are_no_near_duplicates_and_scaled_ones_are() -> None:
    many = [Image.fromarray(photo(96, 128, seed)) for seed in range(60)]
    some = []
    for picture in many:
        stream = BytesIO()
        picture.resize((64, 48)).save(stream, "JPEG", quality=80)
        some.append(Image.open(stream).convert("RGB"))
    found = inspect(open_images(many + some))
    assert found.groups["near-duplicate"] == 60
    assert set(found.found["near-duplicate"]) == set(range(60, 120))

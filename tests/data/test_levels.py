"""Samples of more than 8 bits: what is black and what is white is chosen for a whole data set, and said."""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from pictures import arrays, encoded, photo, png_16
from PIL import Image

from byol.data.images import open_images
from byol.errors import DataError


def deep(bits: int, count: int = 6, low: int = 0) -> np.ndarray:
    """Gray pictures (N, 40, 60) of all numbers of so many bits, each a bit darker than the one before."""
    ramp = np.linspace(0, 2**bits - 1, 2400).reshape(40, 60)
    return np.stack([ramp * (1 - 0.1 * number) + low for number in range(count)]).round()


def tiff(samples: np.ndarray, **options: Any) -> bytes:
    stream = BytesIO()
    tifffile.imwrite(stream, samples, **options)
    return stream.getvalue()


def folder_of(pictures: Any, folder: Path, encode: Callable[[np.ndarray], bytes], suffix: str) -> Path:
    folder.mkdir()
    for number, samples in enumerate(pictures):
        (folder / f"{number:03}{suffix}").write_bytes(encode(samples))
    return folder


@pytest.mark.parametrize("bits", [10, 12, 14])
@pytest.mark.parametrize("kind", ["png", "tiff", "array", "tensor", "list"])
def test_fewer_bits_than_16_keep_their_gray_levels(bits: int, kind: str, tmp_path: Path) -> None:
    import torch

    samples = deep(bits).astype(np.uint16)
    sources: dict[str, Callable[[], Any]] = {
        "png": lambda: folder_of(samples, tmp_path / "p", png_16, ".png"),
        "tiff": lambda: folder_of(samples, tmp_path / "t", tiff, ".tif"),
        "array": lambda: samples,
        "tensor": lambda: torch.from_numpy(samples.astype(np.int32)),
        "list": lambda: [Image.fromarray(one) for one in samples],
    }
    found = arrays(open_images(sources[kind](), channels=1))[..., 0]
    expected = samples / (2**bits - 1) * 255  # the darker pictures stay darker: none is stretched by itself
    assert np.abs(found - expected).max() <= 0.501
    assert len(np.unique(found)) == 256


@pytest.mark.parametrize("kind", ["png", "tiff", "big-endian tiff", "deflated tiff"])
def test_colours_of_12_bits_keep_their_levels(kind: str, tmp_path: Path) -> None:
    samples = np.stack([np.stack([one, one.T.reshape(40, 60), one[::-1]], axis=2) for one in deep(12)])
    ways: dict[str, Callable[[np.ndarray], bytes]] = {
        "png": png_16,
        "tiff": lambda one: tiff(one, photometric="rgb"),
        "big-endian tiff": lambda one: tiff(one, photometric="rgb", byteorder=">"),
        "deflated tiff": lambda one: tiff(one, photometric="rgb", compression="zlib", rowsperstrip=16),
    }
    folder = folder_of(
        samples.astype(np.uint16), tmp_path / "c", ways[kind], ".png" if kind == "png" else ".tif"
    )
    assert np.abs(arrays(open_images(folder)) - samples / 4095 * 255).max() <= 0.501


@pytest.mark.parametrize("kind", ["png", "gray png", "tiff", "big-endian tiff"])
@pytest.mark.parametrize("opaque", [4095, 65535])
def test_of_12_bits_with_alpha_the_levels_are_kept_and_what_is_see_through_is_white(
    kind: str, opaque: int, tmp_path: Path
) -> None:
    samples = np.stack([np.stack([one, one.T.reshape(40, 60), one[::-1]], axis=2) for one in deep(12)])
    if "gray" in kind:
        samples = samples[..., :1].repeat(3, axis=3)
    alpha = np.linspace(0, opaque, 60).round()[None, None, :, None] * np.ones((len(samples), 40, 60, 1))
    whole = np.concatenate([samples[..., :1] if "gray" in kind else samples, alpha], axis=3).astype(np.uint16)
    ways = {"tiff": "<", "big-endian tiff": ">"}

    def write(one: np.ndarray) -> bytes:
        if "png" in kind:
            return png_16(one)
        return tiff(one, photometric="rgb", extrasamples=["unassalpha"], byteorder=ways[kind])

    folder = folder_of(whole, tmp_path / "a", write, ".png" if "png" in kind else ".tif")
    share = alpha / opaque
    expected = samples / 4095 * 255 * share + 255 * (1 - share)
    assert np.abs(arrays(open_images(folder)) - expected).max() <= 1.51  # colour, alpha and their product


@pytest.mark.parametrize("kind", ["array", "tiff", "32-bit tiff"])
def test_negative_numbers_are_read_alike_in_files_and_arrays(kind: str, tmp_path: Path) -> None:
    samples = deep(12, low=-1024).astype(np.int16)  # as computed tomography has them
    dtype = np.int32 if kind == "32-bit tiff" else np.int16
    source = samples if kind == "array" else folder_of(samples.astype(dtype), tmp_path / "n", tiff, ".tif")
    images = open_images(source, channels=1)
    assert images.reading.levels == (-1024, 4095)
    assert np.abs(arrays(images)[..., 0] - (samples + 1024) / 5119 * 255).max() <= 0.501


def test_large_unsigned_numbers_do_not_wrap(tmp_path: Path) -> None:
    samples = (np.linspace(0, 2**32 - 1, 100).reshape(10, 10)).astype(np.uint32)
    pixels = open_images(folder_of([samples], tmp_path / "u", tiff, ".tif"), channels=1).array(0)[..., 0]
    assert np.abs(pixels - samples / (2**32 - 1) * 255).max() <= 0.501


def test_numbers_far_from_0_keep_their_gray_levels() -> None:
    kelvin = (
        np.linspace(29_315, 30_815, 2400).reshape(1, 40, 60).astype(np.uint16)
    )  # hundredths, of a thermal camera
    pixels = open_images(kelvin).array(0)
    assert len(np.unique(pixels)) > 150
    assert (np.diff(pixels.reshape(-1).astype(int)) >= 0).all()


def test_all_16_bits_are_read_as_before_and_nothing_is_said(caplog: pytest.LogCaptureFixture) -> None:
    samples = deep(16).astype(np.uint16)
    assert np.array_equal(arrays(open_images(samples))[..., 0], (samples / 257).round())
    assert not caplog.records


def test_a_hot_pixel_does_not_decide() -> None:
    samples = deep(12, count=2).astype(np.uint16).repeat(5, axis=1)
    samples[0, 3, 4] = 65535
    assert open_images(samples).reading.levels == (0, 4095)


def test_what_is_white_is_said_and_can_be_chosen(caplog: pytest.LogCaptureFixture) -> None:
    samples = deep(12).astype(np.uint16)
    images = open_images(samples)
    assert images.description == "6 images in the array (0 is black, 4,095 white)"
    for part in ("the array", "from 0 to 4,095", "--data.white", "white="):
        assert part in caplog.text
    chosen = open_images(samples, black=100, white=1000)
    assert np.abs(arrays(chosen)[..., 0] - ((samples - 100.0) / 900).clip(0, 1) * 255).max() <= 0.501
    again = open_images(images, white=1000)  # open already: the choice counts all the same
    assert again.reading.levels == (0, 1000)
    assert len({one.fingerprint() for one in (images, chosen, again)}) == 3
    for white in (5, np.nan, np.inf):
        with pytest.raises(DataError, match=f"black is 9 and white {white}"):
            open_images(samples, black=9, white=white)


def test_levels_that_change_nothing_or_leave_little_are_told(caplog: pytest.LogCaptureFixture) -> None:
    open_images(photo()[None], white=4095)
    assert "8 bits" in caplog.text
    caplog.clear()
    for samples in (deep(10).astype(np.uint16), deep(10).astype(np.float32) / 1023):
        caplog.clear()
        open_images(samples, white=65535)
        assert "few gray levels" in caplog.text


@pytest.mark.parametrize("kind", ["array", "tiff"])
def test_floats_go_from_0_to_1_unless_a_white_is_given(kind: str, tmp_path: Path) -> None:
    samples = deep(12).astype(np.float32)
    source = samples if kind == "array" else folder_of(samples, tmp_path / "f", tiff, ".tif")
    with pytest.raises(DataError, match=r"go from 0 to 4095; .*white=.*--data\.white"):
        open_images(source)
    found = arrays(open_images(source, white=4095, channels=1))[..., 0]
    assert np.abs(found - samples / 4095 * 255).max() <= 0.501
    source = samples / 4095 if kind == "array" else folder_of(samples / 4095, tmp_path / "g", tiff, ".tif")
    assert np.array_equal(arrays(open_images(source, channels=1))[..., 0], found)


@pytest.mark.parametrize("dtype", [np.float64, np.float16])
def test_a_tiff_that_pillow_does_not_read_is_not_said_to_be_something_else(
    dtype: Any, tmp_path: Path
) -> None:
    folder = folder_of(deep(1).astype(dtype), tmp_path / "d", tiff, ".tif")
    with pytest.raises(DataError, match=r"TIFF.* does not read, such as 64-bit floats"):
        open_images(folder)


def test_pictures_of_8_bits_among_deeper_ones_stay_as_they_are(tmp_path: Path) -> None:
    folder = folder_of(deep(12).astype(np.uint16), tmp_path / "m", png_16, ".png")
    (folder / "a.png").write_bytes(encoded(photo()))
    images = open_images(folder)
    assert np.array_equal(images.array(len(images) - 1), photo())

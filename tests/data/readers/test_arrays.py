"""Arrays and tensors of any layout and sample kind become uint8 (H, W, C)."""

import os
import pickle
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pictures import PHOTOS, arrays
from PIL import Image
from torchvision.transforms.v2 import functional as tv

from byol.data.decode import BadImage, channel_axis
from byol.data.images import open_images
from byol.errors import DataError


@pytest.mark.parametrize("kind", [np.asarray, torch.tensor])
@pytest.mark.parametrize("channels", [1, 3, 4, 13])
def test_layouts_are_told_apart(channels: int, kind: Callable[[np.ndarray], Any]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, size=(5, 16, 20, channels), dtype=np.uint8)
    for source in (pixels, pixels.transpose(0, 3, 1, 2)):
        images = open_images(kind(source))
        assert (images.channels, images.uniform_size()) == (channels, (16, 20))
        assert np.array_equal(arrays(images), pixels)


def test_gray_arrays_have_no_channel_axis() -> None:
    images = open_images(PHOTOS[..., 0])
    assert (images.channels, images.uniform_size()) == (1, (8, 12))
    assert np.array_equal(arrays(images)[..., 0], PHOTOS[..., 0])


@pytest.mark.parametrize(
    ("shape", "channels", "tensor", "axis"),
    [
        ((3, 32, 4), None, True, 0),  # both lengths are usual: tensors have channels first
        ((3, 32, 4), None, False, 2),
        ((3, 32, 4), 3, False, 0),
        ((64, 64, 64), None, False, 2),
        ((5, 64, 64), None, False, 0),
        ((2, 64, 7), 7, True, 2),
        ((8, 8, 13), None, True, 2),
        ((13, 8, 8), None, False, 0),
    ],
)
def test_doubtful_layouts_follow_what_is_requested_then_their_library(
    shape: tuple[int, ...], channels: int | None, tensor: bool, axis: int
) -> None:
    assert channel_axis(torch.zeros(shape) if tensor else np.zeros(shape), channels) == axis


@pytest.mark.parametrize(
    "dtype", [np.float16, np.float32, np.float64, np.uint16, np.int16, np.bool_, ">u2", ">f4"]
)
def test_samples_are_scaled_to_eight_bits(dtype: Any) -> None:
    shares = np.linspace(0, 1, 480).reshape(5, 8, 12)
    white = {"u": 65535, "i": 32767, "f": 1, "b": 1}[np.dtype(dtype).kind]
    samples = (shares * white).round(8 if np.dtype(dtype).kind == "f" else 0).astype(dtype)
    expected = samples.astype(float) / white * 255
    tolerance = 0.5 + 255 * 2**-11 if dtype is np.float16 else 0.501
    assert np.abs(arrays(open_images(samples))[..., 0] - expected).max() <= tolerance


def test_tensors_agree_with_torchvision() -> None:
    tensor = torch.rand(4, 3, 9, 7, generator=torch.Generator().manual_seed(0))
    theirs = tv.to_dtype(tensor, torch.uint8, scale=True).permute(0, 2, 3, 1)
    for source in (tensor, tensor.to(torch.float64), tensor.requires_grad_()):
        assert (
            np.abs(arrays(open_images(source)).astype(int) - theirs.numpy()).max() <= 1
        )  # they floor, ours rounds
    bfloat = tensor.detach().to(torch.bfloat16)
    assert (
        np.abs(arrays(open_images(bfloat)) - bfloat.permute(0, 2, 3, 1).double().numpy() * 255).max() <= 0.501
    )


def test_channels_of_arrays_can_be_changed_like_those_of_files() -> None:
    gray = open_images(PHOTOS, channels=1)
    assert (gray.channels, gray.array(0).shape) == (1, (8, 12, 1))
    assert np.array_equal(gray.array(1)[..., 0], np.asarray(Image.fromarray(PHOTOS[1]).convert("L")))
    colour = open_images(PHOTOS[..., 0], channels=3)
    assert np.array_equal(colour.array(2), PHOTOS[2, :, :, :1].repeat(3, axis=2))


def test_an_array_handed_out_is_a_writable_copy() -> None:
    source = PHOTOS.copy()
    image = open_images(source).array(0)
    image[:] = 0
    assert np.array_equal(source, PHOTOS)


def test_a_few_bad_images_of_an_array_are_bad_images() -> None:
    samples = (PHOTOS / 255).astype(np.float32)
    samples[1, 3, 3, 0], samples[2, 0, 0, 0] = np.nan, 7
    images = open_images(samples)
    for index, reason in ((1, "not finite"), (2, "go from 0.* to 7; expected floats from 0 to 1")):
        with pytest.raises(BadImage, match=reason):
            images.array(index)
    assert np.array_equal(images.array(3), PHOTOS[3])


@pytest.mark.parametrize(
    ("array", "sentence"),
    [
        (np.full((3, 8, 8), np.nan), "The first, 0: it has samples that are not finite"),
        (PHOTOS.astype(np.float32), "samples go from 0 to 255; expected floats from 0 to 1, .*white="),
        (PHOTOS.astype(np.float32) / 127.5 - 1, "samples go from -"),
        (PHOTOS.astype(complex), "samples are complex128; expected whole numbers, or floats from 0 to 1"),
        (PHOTOS[0], r"have the shape \(8, 12, 3\); .* a single image as array\[None\]"),
        (PHOTOS.reshape(5, -1), r"have the shape \(5, 288\); expected \(N, H, W\)"),
        (PHOTOS[:0], r"have the shape \(0, 8, 12, 3\)"),
        (PHOTOS[:, :0], r"have the shape \(5, 0, 12, 3\)"),
        (np.array([PHOTOS, None], dtype=object), "have the shape"),
        (np.full((3, 8, 8), "a"), "samples are <U1"),
    ],
)
def test_unusable_arrays_are_sentences(array: np.ndarray, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        open_images(array)


def test_channels_that_do_not_fit_are_a_sentence() -> None:
    with pytest.raises(DataError, match="it has 13 channels, and 3 were requested"):
        open_images(np.zeros((2, 8, 8, 13), np.uint8), channels=3)
    with pytest.raises(DataError, match="channels is 0; expected at least 1"):
        open_images(PHOTOS, channels=0)


def test_npy_files_are_mapped_not_read(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", PHOTOS)
    images = open_images(tmp_path / "a.npy")
    assert np.array_equal(arrays(images), PHOTOS)
    assert (images.name(3), images.labels) == ("a.npy:3", None)
    message = pickle.dumps(images)
    assert len(message) < 1000  # a worker gets the file's name
    assert np.array_equal(arrays(pickle.loads(message)), PHOTOS)


@pytest.mark.parametrize(
    "keys", [("images", "labels"), ("x", "y"), ("data", "label"), ("image", "y"), ("pictures", "y")]
)
def test_npz_files_know_images_and_labels_by_their_names(keys: tuple[str, str], tmp_path: Path) -> None:
    labels = np.array([[1], [0], [2], [1], [1]])  # (N, 1), as Keras has it
    np.savez(tmp_path / "a.npz", ids=np.arange(5), **{keys[1]: labels, keys[0]: PHOTOS})
    images = open_images(tmp_path / "a.npz")
    assert np.array_equal(arrays(images), PHOTOS)
    assert images.labels is not None
    assert images.labels.tolist() == [1, 0, 2, 1, 1]
    assert images.description == f"5 images in {tmp_path / 'a.npz'}[{keys[0]}] (3 classes)"


class Canary:
    """Its pickle makes a folder when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "b.npy"])
def test_no_pickle_is_ever_loaded(name: str, tmp_path: Path) -> None:
    objects = np.array([Canary(tmp_path / "executed")] * 3, dtype=object)
    if name == "b.npy":  # a bare pickle by that name
        (tmp_path / name).write_bytes(pickle.dumps(Canary(tmp_path / "executed")))
    elif name.endswith("npz"):
        np.savez(tmp_path / name, images=objects)
    else:
        np.save(tmp_path / name, objects)
    with pytest.raises(DataError, match=r"(it holds Python objects, which are|pickles are) never loaded"):
        open_images(tmp_path / name)
    assert not (tmp_path / "executed").exists()


def test_python_objects_beside_the_images_of_an_npz_cost_nothing(tmp_path: Path) -> None:
    objects = np.array([Canary(tmp_path / "executed")] * 3, dtype=object)
    np.savez(tmp_path / "a.npz", about=objects, pictures=PHOTOS)
    assert np.array_equal(arrays(open_images(tmp_path / "a.npz")), PHOTOS)
    np.savez(tmp_path / "b.npz", about=objects, x=objects, pictures=PHOTOS)
    with pytest.raises(DataError, match="it holds Python objects, which are never loaded"):
        open_images(tmp_path / "b.npz")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
def test_damaged_array_files_are_sentences(name: str, tmp_path: Path) -> None:
    save = np.save if name.endswith("npy") else np.savez
    save(tmp_path / name, PHOTOS)
    data = (tmp_path / name).read_bytes()
    for damaged in (b"", b"<html>404</html>", data[:200]):
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(DataError, match=re.escape(name) + " (cannot be read|is not what numpy.save)"):
            open_images(tmp_path / name)


def test_an_npz_without_images_says_what_it_holds(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", features=np.zeros((5, 7)))
    with pytest.raises(DataError, match=r"holds features \(5, 7\); expected images as an array"):
        open_images(tmp_path / "a.npz")


def in_little_memory(*paths: Path) -> str:
    """What `open_images` says of each path, in a process that has 2 GB beyond what its imports take."""
    script = """
import resource, sys
import numpy, pyarrow.parquet, torch
from byol import ByolError, open_images
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2 * 2**30,) * 2)
for path in sys.argv[1:]:
    try:
        print(open_images(path).labels)
    except ByolError as failure:
        print(failure)
"""
    command = [sys.executable, "-c", script, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout


def test_small_files_that_claim_to_be_huge_are_sentences(tmp_path: Path) -> None:
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (%d, 8, 8), }"
    long, many, void = (tmp_path / f"{name}.npy" for name in ("long", "many", "void"))
    long.write_bytes(b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + header % 5)  # a header of 4 GB
    text = header % 10**12 + b"\n"
    many.write_bytes(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text)
    text = text.replace(b"|u1", b"|V0")  # 10**12 images of no bytes
    void.write_bytes(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + b"padding")
    packed = tmp_path / "packed.npz"
    with (
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("images.npy", "w") as part,
    ):
        text = header % (12 * 2**24) + b"\n"
        part.write(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text)
        for _ in range(12):
            part.write(bytes(2**26))
    lines = in_little_memory(long, many, packed, void).splitlines()
    assert len(lines) == 4
    assert lines.pop() == f"The images in {void} are of type |V0; expected numbers."
    for line, path in zip(lines, (long, many, packed), strict=True):
        assert f"{path.name} cannot be read (" in line
        assert "()" not in line

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from byol.data.images import open_images
from byol.errors import DataError
from byol.features.embed import BATCH, embed
from byol.features.features import Features


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Worker processes are forked from this one; one thread, as on a small machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def folder_of(tmp_path) -> Callable[..., Path]:
    """Writes a folder of different PNG pictures of different sizes: folder_of("cats/1.png", "dogs/2.png")."""

    def write(*names: str | bytes) -> Path:
        for number, name in enumerate(names):
            path = tmp_path / "photos" / os.fsdecode(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            stream = BytesIO()
            Image.fromarray(noise(1, 20 + 3 * number % 17, 24 + 5 * number % 13, seed=number)[0]).save(
                stream, "PNG"
            )
            path.write_bytes(stream.getvalue())
        return tmp_path / "photos"

    return write


def noise(count: int, height: int = 16, width: int = 16, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, channels), dtype=np.uint8)


def one_by_one(encoder, images) -> np.ndarray:
    """What the encoder itself makes of each image alone."""
    tensors = [torch.from_numpy(images.array(index)).permute(2, 0, 1)[None] for index in range(len(images))]
    return torch.cat([encoder(tensor) for tensor in tensors]).numpy()


class Fed(nn.Module):
    """Gives what it is fed."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.scale * x.flatten(1)


# Images through an encoder


def test_features_are_what_the_encoder_gives_each_image_in_order(encoder_of, folder_of):
    names = [f"{kind}/{number}.png" for kind in ("cats", "dogs") for number in range(6)]
    folder, encoder = folder_of(*names), encoder_of("convnet", width=4)
    found = embed(encoder, folder)
    np.testing.assert_allclose(found.x, one_by_one(encoder, open_images(folder)), rtol=1e-4, atol=1e-5)
    assert found.x.dtype == np.float32
    assert found.names == names
    assert found.y.tolist() == [0] * 6 + [1] * 6
    assert found.classes == ("cats", "dogs")
    assert len(np.unique(found.x, axis=0)) == 12


@pytest.mark.parametrize("workers", [1, 2])
def test_worker_processes_change_nothing(encoder_of, folder_of, workers):
    names = [f"{number:03}.png" for number in range(2 * BATCH + 3)]
    folder, encoder = folder_of(*names), encoder_of("convnet", width=4)
    here, there = embed(encoder, folder), embed(encoder, folder, workers=workers)
    assert np.array_equal(here.x, there.x)
    assert here.names == there.names == names


@pytest.mark.parametrize("count", [1, BATCH - 1, BATCH, BATCH + 1])
def test_last_batch_of_any_size_is_embedded_too(encoder_of, count):
    encoder, images = encoder_of("convnet", width=4), open_images(noise(count))
    found, ends = embed(encoder, images), images.subset([0, count - 1])
    assert len(found.x) == count
    np.testing.assert_allclose(found.x[[0, -1]], one_by_one(encoder, ends), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(16, 16), (12, 20)])
def test_encoder_is_fed_the_normalised_central_square_of_pillow(encoder_of, size):
    """The official preprocessing: the central square of int(0.875 x the shorter side), here antialiased."""
    encoder = encoder_of(Fed(), size=size)
    for shape in ((40, 61), (61, 40), (17, 300), (9, 9)):
        image = noise(1, *shape)[0]
        side = int(0.875 * min(shape))
        top, left = (shape[0] - side + 1) // 2, (shape[1] - side + 1) // 2
        square = image[top : top + side, left : left + side].astype(np.float32)
        layers = [
            Image.fromarray(square[..., c]).resize(size[::-1], Image.Resampling.BICUBIC) for c in range(3)
        ]
        expected = np.stack(layers).clip(0, 255) / 255
        expected = (expected - np.reshape([0.485, 0.456, 0.406], (3, 1, 1))) / np.reshape(
            [0.229, 0.224, 0.225], (3, 1, 1)
        )
        np.testing.assert_allclose(embed(encoder, image[None]).x[0], expected.flatten(), rtol=0, atol=1e-3)


def test_images_of_the_encoders_own_size_are_taken_whole(encoder_of):
    images = noise(4, 12, 20)
    encoder = encoder_of(Fed(), size=(12, 20))
    expected = (images / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(
        embed(encoder, images).x, expected.transpose(0, 3, 1, 2).reshape(4, -1), rtol=0, atol=1e-5
    )


def test_gray_encoder_takes_coloured_pictures_as_gray(encoder_of, folder_of):
    folder, encoder = folder_of("1.png", "2.png", "3.png"), encoder_of("convnet", channels=1)
    found = embed(encoder, folder)
    np.testing.assert_allclose(
        found.x, one_by_one(encoder, open_images(folder, channels=1)), rtol=1e-4, atol=1e-5
    )


def test_images_of_other_channels_than_the_encoder_takes_are_refused(encoder_of):
    with pytest.raises(DataError, match="5 channels"):
        embed(encoder_of("convnet"), open_images(noise(3, channels=5)))


def test_images_without_labels_give_features_without(encoder_of, folder_of):
    found = embed(encoder_of("convnet"), folder_of("1.png", "2.png"))
    assert found.y is None
    assert found.classes is None


def test_subset_keeps_its_order_names_and_labels(encoder_of):
    images, encoder = open_images(noise(6), labels=["b", "a", "c", "a", "b", "c"]), encoder_of("convnet")
    whole, some = embed(encoder, images), embed(encoder, images.subset([4, 0, 2]))
    np.testing.assert_allclose(some.x, whole.x[[4, 0, 2]], rtol=1e-4, atol=1e-5)
    assert some.names == ["4", "0", "2"]
    assert some.y.tolist() == [1, 1, 2]
    assert some.classes == ("a", "b", "c")


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_image_is_left_out_and_named(encoder_of, folder_of, caplog, workers):
    folder = folder_of(*(f"{kind}/{number}.png" for kind in ("cats", "dogs") for number in range(3)))
    (folder / "cats" / "1.png").write_bytes(b"<html>")
    (folder / "dogs" / "0.png").write_bytes(b"")
    encoder = encoder_of("convnet")
    with caplog.at_level(logging.WARNING, logger="byol"):
        found = embed(encoder, folder, workers=workers)
    assert found.names == ["cats/0.png", "cats/2.png", "dogs/1.png", "dogs/2.png"]
    assert found.y.tolist() == [0, 0, 1, 1]
    np.testing.assert_allclose(
        found.x, one_by_one(encoder, open_images(folder).subset([0, 2, 4, 5])), rtol=1e-4, atol=1e-5
    )
    (message,) = (record.getMessage() for record in caplog.records)
    assert message.startswith(
        f"Left out, because unreadable: 2 of 6 images in {folder}/ (2 classes): cats/1.png (it is a web page"
    )
    assert "dogs/0.png (the file is empty)" in message


def test_whole_batch_of_unreadable_images_is_left_out(encoder_of, folder_of, caplog):
    folder = folder_of("a.png", *(f"b{number:03}.png" for number in range(2 * BATCH)), "c.png")
    for path in folder.glob("b*.png"):
        path.write_bytes(b"")
    found = embed(encoder_of("convnet"), folder)
    assert found.names == ["a.png", "c.png"]
    (message,) = (record.getMessage() for record in caplog.records)
    assert message.startswith("Left out, because unreadable: 512 of 514 images in ")
    assert message.count("the file is empty") == 5
    assert message.endswith(" ...")


def test_with_strict_an_unreadable_image_is_an_error(encoder_of, folder_of):
    folder = folder_of("1.png", "2.png", "3.png")
    (folder / "2.png").write_bytes(b"")
    with pytest.raises(
        DataError,
        match=r"1 of 3 images cannot be read: 2\.png \(the file is empty\)\. Every one is needed here",
    ):
        embed(encoder_of("convnet"), folder, strict=True)


def test_normalized_rows_have_length_one_and_the_same_direction(encoder_of):
    encoder, images = encoder_of("convnet", width=4), noise(9)
    plain, unit = embed(encoder, images).x, embed(encoder, images, normalize=True).x
    np.testing.assert_allclose(
        unit, plain / np.linalg.norm(plain, axis=1, keepdims=True), rtol=1e-5, atol=1e-7
    )


def test_rows_of_any_scale_are_normalized(encoder_of):
    encoder, images = encoder_of(Fed(), size=(16, 16)), noise(3)
    unit = embed(encoder, images, normalize=True).x
    encoder.net.scale.data.fill_(1e25)
    np.testing.assert_allclose(embed(encoder, images, normalize=True).x, unit, rtol=1e-4, atol=1e-6)


def test_names_that_are_not_utf_8_are_kept_and_escaped_in_the_warning(
    encoder_of, folder_of, tmp_path, caplog
):
    odd, broken = b"\xff\xfe line\nend.png", b"\xfd.png"
    folder = folder_of(odd, broken, "plain.png")
    (folder / os.fsdecode(broken)).write_bytes(b"")
    found = embed(encoder_of("convnet"), folder)
    assert sorted(found.names) == sorted(["plain.png", os.fsdecode(odd)])
    (message,) = (record.getMessage() for record in caplog.records)
    assert r"\udcfd.png (the file is empty)" in message
    message.encode()  # any terminal and log file takes it
    found.save(tmp_path / "features.npz")
    assert Features.load(tmp_path / "features.npz").names == found.names


def test_nothing_readable_is_an_error_with_the_first_reason(encoder_of, folder_of):
    folder = folder_of("1.png", "2.png")
    for path in folder.iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"No image in .*1\.png.*the file is empty"):
        embed(encoder_of("convnet"), folder)
    with pytest.raises(DataError, match=r"None of 0 of .* can be read: there are none"):
        embed(encoder_of("convnet"), open_images(noise(3)).subset([]))


@pytest.mark.parametrize("training", [True, False])
def test_encoder_stays_as_it_was(encoder_of, training):
    encoder = encoder_of("convnet", width=4)
    encoder.train(training)
    encoder.net.layers[1].eval()
    modes = [part.training for part in encoder.modules()]
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    state = torch.get_rng_state()
    embed(encoder, noise(5))
    assert [part.training for part in encoder.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in encoder.parameters())
    assert not any(part._forward_hooks for part in encoder.modules())
    assert torch.equal(torch.get_rng_state(), state)


def test_damaged_weights_are_told_and_not_embedded(encoder_of):
    encoder = encoder_of("convnet")
    encoder.net.layers[0].weight.data[0] = float("nan")
    with pytest.raises(DataError, match=r"5 of 5 feature rows hold NaN or infinity \(the first is row 0\)"):
        embed(encoder, noise(5))


def test_many_workers_get_by_with_few_open_files():
    """1,024 are allowed by default on most machines; here 100, and 600 images are on their way at once."""
    script = """
import resource
import numpy as np, torch
from byol import build_encoder, embed
from byol.method.hidden import HiddenLayer
from byol.encoders.encoder import Encoder, EncoderInfo
torch.set_num_threads(1)
resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
network = HiddenLayer(build_encoder("convnet", width=1))
info = EncoderInfo("convnet", {}, (8, 8), 3, (0.5,) * 3, (0.5,) * 3, 36, None, "none", 0, 1)
images = np.random.default_rng(0).integers(0, 256, (600, 8, 8, 3), dtype=np.uint8)
print(embed(Encoder(network, info), images, workers=3).x.shape)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "(600, 36)", done.stderr

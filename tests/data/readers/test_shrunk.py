import warnings

import numpy as np
import pytest
from pictures import encoded, photo
from PIL import Image, ImageFile

from byol.data.decode import BadImage
from byol.data.images import open_images
from byol.data.workers import never


@pytest.fixture
def folder(tmp_path):
    for number, (height, width) in enumerate(((40, 60), (90, 30), (20, 25))):
        Image.fromarray(photo(height, width, number)).save(tmp_path / f"{number}.png")
    return tmp_path


@pytest.mark.parametrize("channels", [1, 3])
def test_shrunk_pictures_are_pillows_and_keep_their_shape(folder, channels):
    images = open_images(folder, channels=channels)
    small = images.shrunk(20, 2, never)
    for index, size in enumerate(((30, 20), (20, 60), (25, 20))):  # width, height, as Pillow has them
        expected = np.asarray(images[index].resize(size, Image.Resampling.BICUBIC)).reshape(*size[::-1], -1)
        assert small.array(index).shape == (*size[::-1], channels)
        assert np.abs(small.array(index).astype(int) - expected).max() <= 2
    np.testing.assert_array_equal(small.array(2), images.array(2))  # it is small already


def test_a_subset_of_an_array_of_many_channels_is_shrunk_alike():
    data = np.stack([photo(32, 48, seed, channels=5) for seed in range(4)])
    small = open_images(data).subset([3, 1]).shrunk(16, 1, never)
    assert len(small) == 2
    for index, row in enumerate((3, 1)):
        layers = [
            Image.fromarray(data[row, :, :, c]).resize((24, 16), Image.Resampling.BICUBIC) for c in range(5)
        ]
        assert np.abs(small.array(index).astype(int) - np.stack(layers, axis=2)).max() <= 2


def test_an_unreadable_picture_is_told_when_it_is_read_and_others_stay(folder):
    (folder / "1.png").write_bytes(b"damaged")
    small = open_images(folder).shrunk(20, 2, never)
    with pytest.raises(BadImage):
        small.array(1)
    assert small.array(2).shape == (20, 25, 3)


def test_a_wish_to_stop_is_heard_while_pictures_are_decoded(folder):
    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_images(folder).shrunk(20, 2, stop)


def test_pictures_that_are_cut_off_are_the_same_whatever_the_threads_and_leave_no_setting_behind(
    tmp_path,
):
    for number in range(48):
        data = encoded(photo(96, 96, number), "JPEG")
        (tmp_path / f"{number:02d}.jpg").write_bytes(data[: 2 * len(data) // 3])
    images = open_images(tmp_path, truncated=True)
    before = [*warnings.filters], ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS
    one = images.shrunk(32, 1, never)
    for _ in range(5):
        several = images.shrunk(32, 4, never)
        assert all(np.array_equal(one.array(i), several.array(i)) for i in range(len(images)))
        assert ([*warnings.filters], ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS) == before

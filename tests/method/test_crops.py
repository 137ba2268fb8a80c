from itertools import product
from math import ceil, exp, floor, log, sqrt

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from byol.errors import ConfigError
from byol.method.crops import (
    Crops,
    crop_boxes,
    crop_draws,
    crop_resize,
    cubic,
    every_matrix,
    to_device,
)

TABLE_6 = {"area": (0.08, 1.0), "ratio": (3 / 4, 4 / 3), "flip": 0.5}
SIZES = [(1, 1), (1, 7), (2, 3), (32, 32), (375, 500), (4000, 2), (2, 4000), (5184, 3456)]


def drawn(seed, epochs, indices, view, sides) -> Crops:
    return crop_boxes(crop_draws(seed, epochs, indices, view), sides, sides, **TABLE_6)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def crops(*boxes: tuple[int, int, int, int], flip: bool = False) -> Crops:
    return Crops(torch.tensor(boxes), torch.full((len(boxes),), flip))


def pillow(image: torch.Tensor, box: tuple[int, int, int, int], size: tuple[int, int]) -> torch.Tensor:
    """Crop, then antialiased bicubic resize, by Pillow in float: (C, H, W) to (C, h, w)."""
    top, left, height, width = box
    channels = [
        Image.fromarray(channel.float().numpy()).crop((left, top, left + width, top + height))
        for channel in image
    ]
    return torch.stack(
        [torch.from_numpy(np.array(c.resize(size[::-1], Image.Resampling.BICUBIC))) for c in channels]
    )


def official_box(drawn: list[float], height: int, width: int) -> tuple[int, int, int, int]:
    """One image at a time, in plain Python: official dataset.py, _decode_and_random_crop."""
    area = (0.08 + (1 - 0.08) * drawn[0]) * height * width
    aspect = exp(log(3 / 4) + (log(4 / 3) - log(3 / 4)) * drawn[1])
    w = min(
        max(1, round(sqrt(area * aspect))), width
    )  # the official code does not meet images whose crop rounds to 0
    h = min(max(1, round(sqrt(area / aspect))), height)
    return floor(drawn[2] * (height - h + 1)), floor(drawn[3] * (width - w + 1)), h, w


def tensorflow_bicubic(x: np.ndarray, out_size: int) -> np.ndarray:
    """tf.image.resize(antialias=False) along the first axis, tap by tap: Keys' kernel, weights renormalised
    in the image.
    """
    result = np.zeros((out_size, *x.shape[1:]))
    for i in range(out_size):
        centre = (i + 0.5) * len(x) / out_size - 0.5
        weights = {}
        for tap in range(max(0, ceil(centre - 2)), min(len(x) - 1, floor(centre + 2)) + 1):
            d = abs(tap - centre)
            weights[tap] = 1.5 * d**3 - 2.5 * d**2 + 1 if d < 1 else -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2
        result[i] = sum(weight * x[tap] for tap, weight in weights.items()) / sum(weights.values())
    return result


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_boxes_equal_the_official_formula(size):
    drawn = torch.rand((300, 5), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    heights, widths = torch.full((300,), size[0]), torch.full((300,), size[1])
    expected = [official_box(row, *size) for row in drawn.tolist()]
    found = crop_boxes(drawn, heights, widths, **TABLE_6)
    assert found.boxes.tolist() == [list(box) for box in expected]
    assert found.flips.tolist() == (drawn[:, 4] < 0.5).tolist()


def test_boxes_lie_inside_the_image_at_every_extreme_draw():
    corners = torch.tensor(list(product((0.0, 0.5, 1 - 2**-53), repeat=5)), dtype=torch.float64)
    wide = {"area": (1e-6, 1.0), "ratio": (0.01, 100.0)}
    for (height, width), options in product(SIZES, (TABLE_6, TABLE_6 | wide)):
        heights, widths = torch.full((len(corners),), height), torch.full((len(corners),), width)
        top, left, box_height, box_width = crop_boxes(corners, heights, widths, **options).boxes.unbind(1)
        assert min(top.min(), left.min()) >= 0
        assert min(box_height.min(), box_width.min()) >= 1
        assert (top + box_height <= height).all()
        assert (left + box_width <= width).all()


def test_crop_area_is_uniform_aspect_log_uniform_and_half_are_flipped():
    count, side = 4000, 10_000
    keys = torch.arange(count)
    sides = torch.full((count,), side)
    found = drawn(0, torch.zeros_like(keys), keys, 0, sides)
    _, _, height, width = found.boxes.double().unbind(1)
    inside = (height < side) & (width < side)  # the others were clipped
    share, aspect = (height * width / side**2)[inside], (width / height)[inside].log()
    assert inside.double().mean() > 0.8
    assert share.min() == pytest.approx(0.08, abs=2e-3)
    assert (share < 0.54).double().mean() * inside.double().mean() == pytest.approx(0.5, abs=0.03)
    assert aspect.abs().max() <= log(4 / 3) + 1e-3
    small = aspect[share < 0.5]  # never clipped
    assert small.mean() == pytest.approx(0, abs=0.02)
    assert small.var() == pytest.approx((2 * log(4 / 3)) ** 2 / 12, rel=0.05)
    assert found.flips.double().mean() == pytest.approx(0.5, abs=0.03)


def test_crop_follows_from_seed_epoch_index_and_view_alone():
    indices = torch.tensor([5, 9, 2])
    sides = torch.full((3,), 100)
    together = drawn(7, torch.tensor([1, 1, 2]), indices, 1, sides)
    for row, (epoch, index) in enumerate([(1, 5), (1, 9), (2, 2)]):
        alone = drawn(7, torch.tensor([epoch]), torch.tensor([index]), 1, sides[:1])
        assert alone.boxes[0].tolist() == together.boxes[row].tolist()
        assert alone.flips[0] == together.flips[row]


@pytest.mark.parametrize("change", [{"seed": 1}, {"epoch": 1}, {"index": 1}, {"view": 1}])
def test_crop_changes_with_each_part_of_its_key(change):
    def box(seed: int = 0, epoch: int = 0, index: int = 0, view: int = 0) -> list[list[int]]:
        side = torch.tensor([1000])
        return drawn(seed, torch.tensor([epoch]), torch.tensor([index]), view, side).boxes.tolist()

    assert box() != box(**change)


@pytest.mark.parametrize("size", [(16, 16), (64, 48), (33, 41), (5, 90)], ids=str)
@pytest.mark.parametrize("box", [(0, 0, 60, 80), (10, 15, 33, 41), (59, 79, 1, 1), (0, 40, 60, 1)], ids=str)
def test_resize_equals_pillow_on_the_crop(box, size):
    image = noise(3, 60, 80)
    ours = crop_resize(image[None], crops(box), size)[0]
    torch.testing.assert_close(ours, pillow(image, box, size), rtol=0, atol=1e-2)  # in steps of 255


def test_rounded_resize_is_within_one_step_of_pillow_on_uint8():
    image, box = noise(3, 375, 500), (31, 60, 200, 260)
    ours = crop_resize(image[None], crops(box), (32, 32))[0].round().clamp(0, 255)
    picture = Image.fromarray(image.permute(1, 2, 0).numpy()).crop((60, 31, 320, 231))
    theirs = (
        torch.from_numpy(np.array(picture.resize((32, 32), Image.Resampling.BICUBIC)))
        .permute(2, 0, 1)
        .float()
    )
    assert (ours - theirs).abs().max() <= 1


@pytest.mark.parametrize("size", [(16, 20), (100, 90)], ids=str)
def test_resize_of_whole_images_equals_torch_antialiased_bicubic(size):
    images = noise(3, 5, 60, 80)
    ours = crop_resize(images, crops(*[(0, 0, 60, 80)] * 3), size)
    theirs = F.interpolate(images.double(), size, mode="bicubic", antialias=True).float()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-2)


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("size", [(16, 20), (100, 90)], ids=str)
def test_bilinear_resize_equals_torchs(size, antialias):
    images = noise(3, 5, 60, 80)
    ours = crop_resize(images, crops(*[(0, 0, 60, 80)] * 3), size, antialias, "bilinear")
    theirs = F.interpolate(images.double(), size, mode="bilinear", antialias=antialias).float()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-2)


@pytest.mark.parametrize("size", [(16, 16), (20, 37), (64, 64), (90, 128)], ids=str)
def test_without_antialias_equals_tensorflow_on_the_crop(size):
    image, (top, left, height, width) = noise(60, 80), (10, 15, 40, 55)
    ours = crop_resize(image[None, None], crops((top, left, height, width)), size, antialias=False)[0, 0]
    cut = image[top : top + height, left : left + width].double().numpy()
    expected = tensorflow_bicubic(tensorflow_bicubic(cut, size[0]).T, size[1]).T
    torch.testing.assert_close(ours.double(), torch.from_numpy(expected), rtol=0, atol=1e-2)


def test_without_antialias_a_third_of_the_size_takes_every_third_pixel():
    image = noise(1, 3, 96, 96)
    ours = crop_resize(image, crops((0, 0, 96, 96)), (32, 32), antialias=False)
    torch.testing.assert_close(ours, image[:, :, 1::3, 1::3].float(), rtol=0, atol=1e-2)


def test_flip_mirrors_left_to_right():
    images, box = noise(1, 3, 40, 50), (3, 7, 30, 40)
    for antialias in (True, False):
        straight = crop_resize(images, crops(box), (16, 24), antialias)
        mirrored = crop_resize(images, crops(box, flip=True), (16, 24), antialias)
        torch.testing.assert_close(mirrored, straight.flip(3), rtol=0, atol=1e-2)


def test_a_crop_of_the_output_size_is_the_pixels_themselves():
    images = noise(2, 3, 40, 50)
    found = crop_resize(images, crops((1, 2, 30, 40), (10, 10, 30, 40)), (30, 40))
    torch.testing.assert_close(found[0], images[0, :, 1:31, 2:42].float(), rtol=0, atol=1e-3)
    torch.testing.assert_close(found[1], images[1, :, 10:40, 10:50].float(), rtol=0, atol=1e-3)


def test_pixels_outside_the_box_have_no_say():
    images = noise(1, 3, 40, 50)
    other = images.clone()
    outside = torch.ones(40, 50, dtype=torch.bool)
    outside[5:25, 10:30] = False
    other[:, :, outside] = 255 - other[:, :, outside]
    for antialias, size in product((True, False), ((8, 8), (64, 64))):
        first, second = (crop_resize(x, crops((5, 10, 20, 20)), size, antialias) for x in (images, other))
        torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_a_plain_area_stays_plain():
    image = torch.full((1, 1, 50, 60), 77.0)
    for box, size, antialias in product(
        [(0, 0, 50, 60), (20, 20, 2, 2), (49, 59, 1, 1)], [(7, 7), (64, 64)], (True, False)
    ):
        found = crop_resize(image, crops(box), size, antialias)
        torch.testing.assert_close(found, torch.full((1, 1, *size), 77.0), rtol=0, atol=1e-3)


def test_each_image_of_a_batch_gets_its_own_box():
    images = noise(3, 3, 40, 50)
    boxes = [(0, 0, 10, 10), (5, 6, 30, 40), (20, 30, 20, 20)]
    together = crop_resize(images, crops(*boxes), (16, 16))
    for image, box, found in zip(images, boxes, together, strict=True):
        torch.testing.assert_close(
            found, crop_resize(image[None], crops(box), (16, 16))[0], rtol=0, atol=1e-3
        )


def test_images_in_any_memory_layout_give_the_same():
    images = noise(2, 3, 40, 50)
    boxes = crops((0, 0, 10, 10), (5, 6, 30, 40))
    expected = crop_resize(images, boxes, (16, 16))
    for same in (
        images.to(memory_format=torch.channels_last),
        images.transpose(2, 3).contiguous().transpose(2, 3),
    ):
        torch.testing.assert_close(crop_resize(same, boxes, (16, 16)), expected, rtol=0, atol=1e-3)


def test_kernel_is_catmull_rom():
    distances = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, -0.5])
    torch.testing.assert_close(cubic(distances), torch.tensor([1, 9 / 16, 0, -1 / 16, 0, 0, 9 / 16]))


def test_refuses_a_single_image():
    with pytest.raises(ConfigError, match=r"expected \(N, C, H, W\)"):
        crop_resize(torch.zeros(3, 8, 8), crops((0, 0, 8, 8)), (4, 4))


def test_copies_to_a_gpu_come_from_page_locked_memory(monkeypatch):
    """Only such a copy lets the host go on; without a GPU what is requested of torch is recorded."""
    requested = []
    monkeypatch.setattr(
        torch.Tensor, "pin_memory", lambda self: requested.append(("pin", self.is_contiguous())) or self
    )
    monkeypatch.setattr(
        torch.Tensor,
        "to",
        lambda self, device, non_blocking: requested.append((str(device), non_blocking)) or self,
    )
    to_device(torch.zeros(2, 1).expand(2, 3), torch.device("cuda"))  # torch cannot pin what overlaps itself
    assert requested == [("pin", True), ("cuda", True)]


def test_a_tensor_that_stays_on_the_cpu_is_not_copied():
    x = torch.arange(3)
    assert to_device(x, torch.device("cpu")) is x


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gets_the_values():
    x = torch.arange(6).view(2, 3).t()
    assert torch.equal(to_device(x, torch.device("cuda")).cpu(), x)


def test_small_images_of_many_sizes_share_their_tables():
    """A table takes a hundred times as long as the matrices of one image: none is made twice."""

    def resize_all() -> int:
        for side in range(8, 39):
            crop_resize(noise(1, 3, side, side), crops((0, 0, side, side)), (16, 16))
        return every_matrix.cache_info().misses

    assert resize_all() == resize_all()

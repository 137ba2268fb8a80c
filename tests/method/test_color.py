import colorsys

import numpy as np
import pytest
import torch
from torchvision.transforms import functional as tv

from byol.method import color

OFFICIAL = [
    ("brightness", color.adjust_brightness, (-0.4, -0.1, 0.25)),
    ("contrast", color.adjust_contrast, (0.6, 1.0, 1.4)),
    ("saturation", color.adjust_saturation, (0.8, 1.2)),
    ("hue", color.adjust_hue, (-0.1, 0.05, 0.1)),
    ("blur", lambda x, sigma: color.blur(x, sigma, color.blur_taps(x.shape[2])), (0.1, 0.7, 2.0)),
]
# Where HSV has its corners: grays, black, white, pure colours, two equal channels.
CORNERS = [
    (0, 0, 0),
    (1, 1, 1),
    (0.5, 0.5, 0.5),
    (1, 0, 0),
    (0, 1, 0),
    (0, 0, 1),
    (1, 1, 0),
    (0, 1, 1),
    (1, 0, 1),
]
CORNERS += [
    (0.2, 0.6, 0.4),
    (0.7, 0.7, 0.1),
    (0.1, 0.7, 0.7),
    (0.7, 0.1, 0.7),
    (1e-6, 0, 0),
    (0.3, 0.3, 0.3 + 1e-6),
]


def channels_first(image: torch.Tensor) -> torch.Tensor:
    """(H, W, C) of the official code as a batch (1, C, H, W)."""
    return image.permute(2, 0, 1)[None].contiguous()


def noise(count: int = 4, channels: int = 3, size: int = 16) -> torch.Tensor:
    return torch.rand((count, channels, size, size), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("name", "operation", "parameters"), OFFICIAL, ids=[row[0] for row in OFFICIAL])
def test_operation_equals_official_with_a_parameter_per_image(golden, name, operation, parameters):
    values = golden("views_32")
    images = channels_first(values["image"]).repeat(len(parameters), 1, 1, 1)
    expected = torch.cat([channels_first(values[f"{name}_{parameter}"]) for parameter in parameters])
    torch.testing.assert_close(operation(images, torch.tensor(parameters)), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "operation"), [("grayscale", color.grayscale), ("solarize", color.solarize)]
)
def test_operation_without_parameter_equals_official(golden, name, operation):
    values = golden("views_32")
    torch.testing.assert_close(
        operation(channels_first(values["image"])), channels_first(values[name]), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("sigma", [0.7, 2.0])
def test_blur_of_64_pixels_equals_official(golden, sigma):
    values = golden("blur")
    blurred = color.blur(channels_first(values["image_64"]), torch.tensor([sigma]), color.blur_taps(64))
    torch.testing.assert_close(blurred, channels_first(values[f"blur_64_{sigma}"]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("sigma", [0.5, 2.0])
def test_blur_of_224_pixels_equals_official_at_its_corner(golden, sigma):
    values = golden("blur")
    blurred = color.blur(channels_first(values["image_224"]), torch.tensor([sigma]), color.blur_taps(224))
    torch.testing.assert_close(
        blurred[:, :, :36, :36], channels_first(values[f"blur_224_{sigma}"]), rtol=0, atol=1e-5
    )


def test_blur_kernel_grows_with_the_image_as_in_the_official_code():
    sizes = {224: 23, 160: 17, 128: 13, 96: 9, 64: 7, 32: 3, 16: 1}
    assert {size: color.blur_taps(size) for size in sizes} == sizes


def test_blur_darkens_the_border_as_if_black_lay_beyond():
    blurred = color.blur(torch.ones(1, 3, 224, 224), torch.tensor([2.0]), 23)[0, 0]
    assert blurred[0, 0].item() == pytest.approx(0.36, abs=5e-3)
    assert blurred[0, 112].item() == pytest.approx(0.60, abs=5e-3)
    assert blurred[112, 112].item() == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("shape", [(20, 33), (33, 20), (3, 9)])
def test_blur_of_any_shape_and_channels_is_a_zero_padded_convolution(shape):
    x, sigma, taps = torch.rand(2, 5, *shape, generator=torch.Generator().manual_seed(0)), 1.3, 7
    weights = np.exp(-(np.arange(-3, 4) ** 2) / (2 * sigma**2))
    weights = torch.from_numpy(np.outer(weights, weights) / weights.sum() ** 2).float()
    expected = torch.nn.functional.conv2d(
        x, weights.expand(5, 1, taps, taps).contiguous(), padding=3, groups=5
    )
    torch.testing.assert_close(color.blur(x, torch.full((2,), sigma), taps), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("delta", [-0.5, -0.1, 0.0, 0.07, 0.5])
def test_hue_turns_as_in_the_standard_library(delta):
    rgb = [*CORNERS, *torch.rand(200, 3, generator=torch.Generator().manual_seed(0)).tolist()]
    hsv = [colorsys.rgb_to_hsv(*pixel) for pixel in rgb]
    expected = torch.tensor([colorsys.hsv_to_rgb((h + delta) % 1, s, v) for h, s, v in hsv])
    x = torch.tensor(rgb, dtype=torch.float32).T.reshape(1, 3, -1, 1)
    torch.testing.assert_close(
        color.adjust_hue(x, torch.tensor([delta]))[0, :, :, 0].T, expected, rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("factor", [0.0, 0.8, 1.0, 1.2, 2.0])
def test_saturation_scales_as_in_the_standard_library(factor):
    rgb = [*CORNERS, *torch.rand(200, 3, generator=torch.Generator().manual_seed(0)).tolist()]
    hsv = [colorsys.rgb_to_hsv(*pixel) for pixel in rgb]
    expected = torch.tensor([colorsys.hsv_to_rgb(h, min(1.0, s * factor), v) for h, s, v in hsv])
    x = torch.tensor(rgb, dtype=torch.float32).T.reshape(1, 3, -1, 1)
    torch.testing.assert_close(
        color.adjust_saturation(x, torch.tensor([factor]))[0, :, :, 0].T, expected, rtol=0, atol=1e-5
    )


TORCHVISION = [
    (color.torchvision_brightness, tv.adjust_brightness, (0.6, 1.0, 1.4, 0.0)),
    (color.torchvision_contrast, tv.adjust_contrast, (0.6, 1.0, 1.4, 0.0)),
    (color.torchvision_saturation, tv.adjust_saturation, (0.8, 1.0, 1.2, 0.0)),
    (color.adjust_hue, tv.adjust_hue, (-0.1, 0.0, 0.1, 0.5)),
]


@pytest.mark.parametrize(
    ("ours", "theirs", "parameters"), TORCHVISION, ids=[row[0].__name__ for row in TORCHVISION]
)
def test_torchvision_operation_is_that_of_torchvision_with_a_parameter_per_image(ours, theirs, parameters):
    x = noise()
    expected = torch.stack([theirs(image, parameter) for image, parameter in zip(x, parameters, strict=True)])
    torch.testing.assert_close(ours(x, torch.tensor(parameters)), expected, rtol=0, atol=1e-5)


def test_torchvision_contrast_of_one_channel_is_that_of_torchvision():
    x = noise(channels=1)
    expected = tv.adjust_contrast(x[:1], 1.3)
    torch.testing.assert_close(
        color.torchvision_contrast(x[:1], torch.tensor([1.3])), expected, rtol=0, atol=1e-5
    )


def test_grayscale_and_solarize_are_those_of_torchvision():
    x = noise()
    torch.testing.assert_close(color.grayscale(x), tv.rgb_to_grayscale(x, 3), rtol=0, atol=1e-4)
    torch.testing.assert_close(color.solarize(x), tv.solarize(x, 0.5), rtol=0, atol=0)


def test_solarize_keeps_what_is_below_the_threshold_and_inverts_the_threshold_itself():
    x = torch.tensor([0.0, 0.2499, 0.25, 0.7, 1.0]).view(1, 1, 1, 5)
    torch.testing.assert_close(color.solarize(x, 0.25).flatten(), torch.tensor([0.0, 0.2499, 0.75, 0.3, 0.0]))


@pytest.mark.parametrize(
    "operation", [operation for _, operation, _ in OFFICIAL[:4]] + [ours for ours, _, _ in TORCHVISION[:3]]
)
def test_operations_leave_their_input_alone_and_stay_in_range(operation):
    x = noise()
    before = x.clone()
    result = operation(x, torch.tensor([-0.5, 0.5, 0.0, 0.4]) + (0 if operation is color.adjust_hue else 1))
    torch.testing.assert_close(x, before, rtol=0, atol=0)
    assert result.shape == x.shape
    assert result.min() >= 0
    assert result.max() <= 1

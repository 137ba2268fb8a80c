import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from byol.errors import ConfigError
from byol.method import color
from byol.method.pixels import IMAGENET_MEAN, IMAGENET_STD, prepare
from byol.method.views import ViewConfig, Views, normalisation

OFF = {"crop_area": (1.0, 1.0), "crop_ratio": (1.0, 1.0), "flip": 0.0, "jitter": 0.0, "grayscale": 0.0}
OFF |= {"blur": (0.0, 0.0), "solarize": (0.0, 0.0), "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
NO_COLOR = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}


def views(size: int = 16, channels: int = 3, **options: object) -> Views:
    """Views that leave the image as it is, but for the options given."""
    return Views(size, ViewConfig(**OFF | options), channels)


def noise(count: int = 8, channels: int = 3, size: int = 16, seed: int = 0) -> torch.Tensor:
    return torch.rand((count, channels, size, size), generator=torch.Generator().manual_seed(seed))


def bytes_of(images: torch.Tensor) -> torch.Tensor:
    return (images * 255).round().to(torch.uint8)


def changed(view: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Which images differ from their view, bool (B,)."""
    return ((view - images).abs() > 1e-4).flatten(1).any(dim=1)


def share(chosen: torch.Tensor) -> float:
    return chosen.double().mean().item()


def test_defaults_are_table_6_of_the_paper():
    config = ViewConfig()
    assert (config.crop_area, config.crop_ratio) == ((0.08, 1.0), (3 / 4, 4 / 3))
    assert (config.flip, config.jitter, config.grayscale) == (0.5, 0.8, 0.2)
    assert (config.brightness, config.contrast, config.saturation, config.hue) == (0.4, 0.4, 0.2, 0.1)
    assert (config.blur, config.blur_sigma, config.solarize) == ((1.0, 0.1), (0.1, 2.0), (0.0, 0.2))
    assert (config.mean, config.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert config.color == "official"


def test_with_everything_off_views_are_the_normalised_images():
    images = noise()
    mean, std = torch.tensor(IMAGENET_MEAN).view(3, 1, 1), torch.tensor(IMAGENET_STD).view(3, 1, 1)
    for view in views(mean=IMAGENET_MEAN, std=IMAGENET_STD)(images):
        torch.testing.assert_close(view, (images - mean) / std, rtol=0, atol=1e-5)


def test_every_image_gets_a_draw_of_its_own():
    images = bytes_of(noise(1, size=32)).expand(12, -1, -1, -1)
    drawn = torch.cat(Views(32)(images))
    assert all(not torch.allclose(one, other, atol=0.05) for one, other in itertools.combinations(drawn, 2))


def test_view_1_is_never_solarized_and_view_2_in_a_fifth_of_the_images():
    images = noise(3000, size=8)
    view1, view2 = views(8, solarize=ViewConfig().solarize)(images)
    torch.testing.assert_close(view1, images, rtol=0, atol=1e-5)
    solarized = changed(view2, images)
    assert share(solarized) == pytest.approx(0.2, abs=0.025)
    torch.testing.assert_close(view2[solarized], color.solarize(images)[solarized], rtol=0, atol=1e-5)


def test_view_1_is_always_blurred_and_view_2_in_a_tenth_of_the_images():
    images = noise(2000, size=20)
    config = ViewConfig()
    view1, view2 = views(20, blur=config.blur, blur_sigma=(0.5, 2.0))(images)  # below 0.5 a blur hardly shows
    assert changed(view1, images).all()
    assert share(changed(view2, images)) == pytest.approx(0.1, abs=0.025)


def test_flip_jitter_and_grayscale_keep_their_probabilities_in_both_views():
    images = noise(2000, size=8)
    for view in views(8, flip=0.5)(images):
        mirrored = changed(view, images)
        assert share(mirrored) == pytest.approx(0.5, abs=0.035)
        torch.testing.assert_close(view[mirrored], images[mirrored].flip(3), rtol=0, atol=1e-5)
    for view in views(8, jitter=0.8)(images):
        assert share(changed(view, images)) == pytest.approx(0.8, abs=0.03)
    for view in views(8, grayscale=0.2)(images):
        gray = changed(view, images)
        assert share(gray) == pytest.approx(0.2, abs=0.03)
        torch.testing.assert_close(view[gray], color.grayscale(images)[gray], rtol=0, atol=1e-5)


def test_the_two_views_of_an_image_are_drawn_independently():
    images = noise(4000, size=4)
    first, second = (changed(view, images).double() for view in views(4, flip=0.5)(images))
    assert abs(np.corrcoef(first, second)[0, 1]) < 4 / 4000**0.5
    first, second = (changed(view, images).double() for view in views(4, grayscale=0.5)(images))
    assert abs(np.corrcoef(first, second)[0, 1]) < 4 / 4000**0.5


def test_flip_jitter_grayscale_blur_and_solarize_are_drawn_independently():
    images = noise(4000, size=4)
    options = [{"flip": 0.5}, {"jitter": 0.5}, {"grayscale": 0.5}, {"solarize": (0.5, 0.5)}]
    options += [{"blur": (0.5, 0.5), "blur_size": 1.0, "blur_sigma": (1.0, 2.0)}]
    drawn = np.stack([changed(views(4, **option)(images)[1], images) for option in options])
    assert np.abs(np.corrcoef(drawn) - np.eye(5)).max() < 4 / 4000**0.5


def assert_uniform(drawn: torch.Tensor, low: float, high: float) -> None:
    width = high - low
    assert drawn.min().item() == pytest.approx(low, abs=0.01 * width)
    assert drawn.max().item() == pytest.approx(high, abs=0.01 * width)
    assert drawn.mean().item() == pytest.approx((low + high) / 2, abs=0.03 * width)
    assert drawn.var().item() == pytest.approx(width**2 / 12, rel=0.08)


def test_brightness_is_a_uniform_shift_and_with_torchvision_a_uniform_factor():
    images = torch.full((2000, 3, 2, 2), 0.5)
    only = NO_COLOR | {"jitter": 1.0, "brightness": 0.4}
    assert_uniform(views(2, **only)(images)[0][:, 0, 0, 0] - 0.5, -0.4, 0.4)
    assert_uniform(views(2, color="torchvision", **only)(images)[0][:, 0, 0, 0] / 0.5, 0.6, 1.4)


def test_contrast_saturation_and_hue_are_uniform_in_their_range():
    red = torch.tensor([0.6, 0.4, 0.4]).view(1, 3, 1, 1).repeat(2000, 1, 2, 2)
    contrasted = red.clone()
    contrasted[:, :, 0] += 0.1
    on = NO_COLOR | {"jitter": 1.0}
    top, bottom = views(2, **on | {"contrast": 0.4})(contrasted)[0][:, 0, :, 0].unbind(1)
    assert_uniform((top - bottom) / 0.1, 0.6, 1.4)
    saturated = views(2, **on | {"saturation": 0.2})(red)[0][:, :, 0, 0]
    assert_uniform((saturated[:, 0] - saturated[:, 1]) / 0.2, 0.8, 1.2)
    turned = views(2, **on | {"hue": 0.1})(red)[0][
        :, :, 0, 0
    ]  # from red, turns up to a sixth move green up or blue up
    assert_uniform((turned[:, 1] - turned[:, 2]) / 0.2 / 6, -0.1, 0.1)


def test_the_numbers_of_one_view_are_drawn_independently():
    images = torch.full((4000, 3, 2, 2), 0.4)
    images[:, 0] = 0.6
    on = NO_COLOR | {"jitter": 1.0}
    colored = views(2, **on | {"saturation": 0.2, "hue": 0.1})(images)[0][:, :, 0, 0]
    factor, turn = colored.amax(dim=1) - colored.amin(dim=1), colored[:, 1] - colored[:, 2]
    images[:, :, 0] += 0.1
    shifted = views(2, **on | {"brightness": 0.1, "contrast": 0.4})(images)[0][:, 0, :, 0]
    drawn = np.stack([factor, turn / factor, shifted.mean(dim=1), shifted[:, 0] - shifted[:, 1]])
    assert np.abs(np.corrcoef(drawn) - np.eye(4)).max() < 4 / 4000**0.5


def test_blur_sigma_is_uniform_in_its_range_whatever_the_probability():
    images = torch.zeros(3000, 3, 21, 21)
    images[:, :, 10, 10] = 1
    for view in views(21, blur=(1.0, 0.5), blur_sigma=(0.3, 2.0))(images):
        centre, beside = view[changed(view, images), 0, 10, 10:12].unbind(1)
        assert_uniform((2 * (centre / beside).log()).rsqrt(), 0.3, 2.0)


def test_color_operations_come_in_either_order():
    """Contrast and hue do not commute: each view is explained by one order, for some contrast and hue, and
    not by the other.
    """
    image = noise(1, size=2, seed=3) * 0.5 + 0.25
    view = views(2, **NO_COLOR | {"jitter": 1.0, "contrast": 0.4, "hue": 0.1})(image.expand(60, -1, -1, -1))[
        0
    ]
    factors, turns = torch.cartesian_prod(
        torch.linspace(0.6, 1.4, 161), torch.linspace(-0.1, 0.1, 161)
    ).unbind(1)
    grid = image.expand(len(factors), -1, -1, -1)
    contrast_first = color.adjust_hue(color.adjust_contrast(grid, factors), turns).flatten(1)
    hue_first = color.adjust_contrast(color.adjust_hue(grid, turns), factors).flatten(1)
    misses = torch.stack(
        [torch.cdist(view.flatten(1), order).amin(dim=1) for order in (contrast_first, hue_first)]
    )
    assert misses.amin(dim=0).max() < 6e-3  # the spacing of the grid
    told_apart = misses.amax(dim=0) > 3 * misses.amin(dim=0)
    assert 0.25 < share((misses[0] < misses[1])[told_apart]) < 0.75
    assert told_apart.sum() > 40


@pytest.mark.parametrize("split", [(3, 5), (1, 7), (4, 4)])
def test_micro_batches_draw_what_one_large_batch_would(split):
    crops = torch.rand((8, 2, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    draw = Views(16)
    whole = draw.finish(crops, seed=5, step=9)
    parts = [
        draw.finish(crops[: split[0]], seed=5, step=9),
        draw.finish(crops[split[0] :], seed=5, step=9, first_row=split[0]),
    ]
    for view in (0, 1):
        torch.testing.assert_close(torch.cat([part[view] for part in parts]), whole[view], rtol=0, atol=1e-5)


def test_views_repeat_for_the_same_seed_and_step_and_change_with_either():
    images = noise(size=24)
    draw = Views(16)
    first = draw(images, seed=1, step=2)
    torch.manual_seed(123)
    for view, again in zip(first, draw(images, seed=1, step=2), strict=True):
        torch.testing.assert_close(again, view, rtol=0, atol=0)
    for other in ({"seed": 2, "step": 2}, {"seed": 1, "step": 3}):
        assert all(
            changed(view, again).all() for view, again in zip(first, draw(images, **other), strict=True)
        )


def test_torch_random_state_is_not_moved():
    state = torch.get_rng_state()
    Views(16)(noise(), seed=0)
    assert torch.equal(torch.get_rng_state(), state)


def test_images_are_left_as_they_were():
    for images in (noise(), bytes_of(noise()), noise().double()):
        before = images.clone()
        views(jitter=1.0, solarize=(1.0, 1.0))(images)
        crops = torch.stack([images, images], dim=1)
        views(jitter=1.0, solarize=(1.0, 1.0)).finish(crops, seed=0, step=0)
        assert torch.equal(images, before)
        assert torch.equal(crops[:, 0], before)


def test_uint8_gives_the_views_of_the_same_images_in_float():
    images = bytes_of(noise(size=24))
    for found, expected in zip(Views(16)(images, seed=0), Views(16)(images / 255, seed=0), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    crops = bytes_of(torch.stack([noise(), noise(seed=1)], dim=1))
    for found, expected in zip(
        Views(16).finish(crops, seed=0, step=0), Views(16).finish(crops / 255, seed=0, step=0), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_views_of_any_floating_type_are_float32(dtype):
    images = noise().to(dtype)
    for found, expected in zip(Views(16)(images, seed=0), Views(16)(images.float(), seed=0), strict=True):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_views_under_bf16_autocast_are_the_same_float32_views():
    images = bytes_of(noise(size=50))
    draw = Views(32)
    expected = (*draw(images, seed=0), draw.prepare(images))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = (*draw(images, seed=0), draw.prepare(images))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_channels_last_images_give_the_same_views():
    images = noise(size=24)
    expected = Views(16)(images, seed=0)
    for found, view in zip(
        Views(16)(images.to(memory_format=torch.channels_last), seed=0), expected, strict=True
    ):
        torch.testing.assert_close(found, view, rtol=0, atol=1e-4)


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_images_of_other_than_three_channels_get_what_makes_sense_for_them(channels):
    images = noise(64, channels, 20)
    view1, view2 = Views(20, channels=channels)(images)
    assert view1.shape == view2.shape == images.shape
    assert view1.isfinite().all()
    assert view2.isfinite().all()
    gray = Views(20, ViewConfig(**OFF | {"grayscale": 1.0}), channels)
    torch.testing.assert_close(gray(images)[0], images, rtol=0, atol=1e-5)
    for option in (
        {"jitter": 1.0},
        {"solarize": (1.0, 1.0)},
        {"blur": (1.0, 1.0), "blur_sigma": (1.0, 2.0)},
        {"flip": 1.0},
    ):
        assert changed(views(20, channels, **option)(images)[1], images).all()


@pytest.mark.parametrize("channels", [1, 2, 3, 13])
def test_every_channel_has_a_mean_and_a_standard_deviation_of_its_own(channels):
    mean, std = (tuple(np.linspace(*ends, channels).tolist()) for ends in ((0.1, 0.7), (0.2, 0.9)))
    images = noise(4, size=8, channels=channels)
    drawn = views(8, channels=channels, mean=mean, std=std)
    expected = (images - torch.tensor(mean).view(1, -1, 1, 1)) / torch.tensor(std).view(1, -1, 1, 1)
    for found in (*drawn(images), drawn.prepare(images)):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_another_number_of_means_than_of_channels_is_refused():
    for name in ("mean", "std"):
        with pytest.raises(ConfigError, match=rf"views\.{name} has 2 numbers.*13 channels"):
            Views(8, ViewConfig(**{name: (0.5, 0.5)}), 13)
        with pytest.raises(ConfigError, match=rf"views\.{name} is \(\)"):
            ViewConfig(**{name: ()})


def test_normalisation_of_other_than_three_channels_is_the_average_of_the_three():
    assert normalisation(ViewConfig(), 3) == (IMAGENET_MEAN, IMAGENET_STD)
    mean, std = normalisation(ViewConfig(), 5)
    assert mean == pytest.approx([np.mean(IMAGENET_MEAN)] * 5)
    assert std == pytest.approx([np.mean(IMAGENET_STD)] * 5)


def test_views_may_be_oblong_and_images_of_any_size():
    for height, width in ((50, 30), (1, 1), (24, 40), (3, 200)):
        view1, view2 = Views((24, 40))(torch.rand(2, 3, height, width))
        assert view1.shape == view2.shape == (2, 3, 24, 40)
        assert view1.isfinite().all()


@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("kind", ["official", "torchvision"])
def test_plain_images_give_finite_views(level, kind):
    for view in Views(20, ViewConfig(color=kind))(torch.full((200, 3, 8, 8), level)):
        assert view.isfinite().all()


def test_views_before_normalisation_stay_in_range():
    strong = ViewConfig(
        brightness=1.0, contrast=1.0, saturation=1.0, hue=0.5, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)
    )
    for kind in ("official", "torchvision"):
        for view in Views(20, replace(strong, color=kind))(noise(200, size=30)):
            assert view.min() >= 0
            assert view.max() <= 1


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(3, 8, 8), r"expected a tensor \(B, 3, H, W\)"),
        (torch.zeros(2, 1, 8, 8), r"expected a tensor \(B, 3, H, W\)"),
        (torch.zeros(2, 8, 8, 3), r"expected a tensor \(B, 3, H, W\)"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.int64), "expected uint8"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.bool), "expected uint8"),
        (np.zeros((2, 3, 8, 8)), "ndarray"),
        ([torch.zeros(3, 8, 8)], "list"),
    ],
)
def test_refuses_what_is_not_a_batch_of_images(images, message):
    with pytest.raises(ConfigError, match=message):
        Views(8)(images)
    with pytest.raises(ConfigError, match=message):
        Views(8).prepare(images)


def test_finish_refuses_crops_without_two_views():
    for shape in ((4, 3, 8, 8), (4, 1, 3, 8, 8), (4, 3, 3, 8, 8)):
        with pytest.raises(ConfigError, match=r"expected \(B, 2, C, h, w\)"):
            Views(8).finish(torch.zeros(shape), seed=0, step=0)


@pytest.mark.parametrize(
    ("size", "channels"),
    [(0, 3), (-1, 3), ((8, 0), 3), ((8,), 3), ((8, 8, 8), 3), (8, 0), (8.0, 3), ("8", 3), (None, 3)],
)
def test_refuses_sizes_that_cannot_be(size, channels):
    with pytest.raises(ConfigError, match="image_size" if channels else "channels"):
        Views(size, channels=channels)


WRONG_NUMBERS = [
    {"flip": 1.1},
    {"jitter": -0.1},
    {"grayscale": float("nan")},
    {"blur": (1.0, 2.0)},
    {"solarize": (-0.1, 0.2)},
]
WRONG_NUMBERS += [
    {"solarize_threshold": 2.0},
    {"brightness": 1.5},
    {"contrast": -0.1},
    {"saturation": 2.0},
    {"hue": 0.6},
]
WRONG_NUMBERS += [
    {"crop_area": (0.0, 1.0)},
    {"crop_area": (0.5, 0.1)},
    {"crop_area": (0.5, 1.5)},
    {"crop_ratio": (2.0, 1.0)},
]
WRONG_NUMBERS += [
    {"blur_sigma": (0.0, 1.0)},
    {"blur_size": 1.5},
    {"std": (0.0, 1.0, 1.0)},
    {"color": "kornia"},
]
WRONG_NUMBERS += [
    {"blur": (1.0,)},
    {"blur": 1.0},
    {"mean": ()},
    {"crop_ratio": (0.5, float("inf"))},
    {"flip": "often"},
]


@pytest.mark.parametrize(
    "bad",
    WRONG_NUMBERS,
    ids=str,
)
def test_refuses_numbers_outside_their_range_by_name(bad):
    with pytest.raises(ConfigError, match=rf"views\.{next(iter(bad))} is .* expected"):
        ViewConfig(**bad)


def test_prepare_takes_images_of_the_size_whole():
    images = bytes_of(noise())
    torch.testing.assert_close(prepare(images, (16, 16)), images / 255)
    mean, std = torch.tensor(IMAGENET_MEAN).view(3, 1, 1), torch.tensor(IMAGENET_STD).view(3, 1, 1)
    torch.testing.assert_close(Views(16).prepare(images), (images / 255 - mean) / std, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (40, 61), (61, 40), (17, 16), (1, 5)])
def test_prepare_resizes_the_central_square_of_the_official_code(height, width):
    image = torch.randint(
        0, 256, (3, height, width), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    side = max(1, int(0.875 * min(height, width)))
    top, left = (height - side + 1) // 2, (width - side + 1) // 2
    channels = [
        Image.fromarray(channel.float().numpy()).crop((left, top, left + side, top + side))
        for channel in image
    ]
    resized = [np.array(channel.resize((16, 16), Image.Resampling.BICUBIC)) for channel in channels]
    expected = torch.from_numpy(np.stack(resized) / 255).clamp(0, 1).float()
    torch.testing.assert_close(prepare(image[None], (16, 16))[0], expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(prepare(image[None] / 255, (16, 16))[0], expected, rtol=0, atol=1e-4)


def test_floats_that_are_not_from_0_to_1_are_told_of_once(caplog):
    """They are clamped, so a learner would see black and white."""
    views = Views(8)
    views(torch.rand(2, 3, 8, 8))
    assert caplog.text == ""
    for _ in range(2):
        views(torch.full((2, 3, 8, 8), -2.5))
    assert caplog.text.count("from -2.5 to -2.5; expected floats from 0 to 1") == 1
    Views(8)(torch.full((2, 3, 8, 8), 255, dtype=torch.uint8))
    assert len(caplog.records) == 1


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_flips_and_turns_lay_a_square_in_all_eight_ways_as_often(channels):
    image = noise(1, channels, 6)
    drawn = torch.cat(
        views(6, channels, flip=0.5, vertical_flip=0.5, turn=0.5)(image.expand(1200, -1, -1, -1))
    )
    ways = [
        np.rot90(turned, quarter, (1, 2))
        for turned in (image[0].numpy(), image[0].numpy()[..., ::-1])
        for quarter in range(4)
    ]
    counts = [int((np.abs(drawn.numpy() - way).max(axis=(1, 2, 3)) < 1e-5).sum()) for way in ways]
    assert sum(counts) == 2400
    assert 240 < min(counts) <= max(counts) < 360  # 300 each; a standard deviation is 16


def test_a_vertical_flip_alone_mirrors_top_to_bottom():
    images = noise()
    torch.testing.assert_close(
        views(vertical_flip=1.0)(images)[0],
        torch.from_numpy(images.numpy()[:, :, ::-1].copy()),
        rtol=0,
        atol=1e-5,
    )


def test_views_that_are_not_square_cannot_be_turned():
    with pytest.raises(ConfigError, match=r"views\.turn is 0\.5.*\(16, 8\)"):
        Views((16, 8), ViewConfig(turn=0.5))

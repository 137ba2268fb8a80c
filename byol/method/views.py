"""Two views of every image, as the paper draws them (Appendix B, Table 6; official augmentations.py).

A draw per image, asymmetric between the views: view 1 is always blurred and never solarized, view 2 is blurred in 10 %
and solarized in 20 % of the images. All draws follow from (seed, step, row) and are made on the host.
"""

import logging
import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from byol.errors import ConfigError
from byol.method import color
from byol.method.crops import Crops, crop_resize, draw_crops, to_device
from byol.method.draws import Stream, uniforms
from byol.method.pixels import IMAGENET_MEAN, IMAGENET_STD, check_images, prepare, to_float

logger = logging.getLogger("byol")
_LENGTHS = dict.fromkeys(("crop_area", "crop_ratio", "blur", "blur_sigma", "solarize"), 2) | {
    "mean": 3,
    "std": 3,
}
CACHE = 2**18  # numbers that are worked on at once on a CPU, so that they stay in its cache


@dataclass(frozen=True)
class ViewConfig:
    """Every number of Table 6; a pair means view 1, view 2."""

    crop_area: tuple[float, float] = (0.08, 1.0)
    """Smallest and largest share of the image's area a crop takes."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Smallest and largest aspect ratio of a crop."""
    antialias: bool = True
    """Widen the resize kernel when a crop shrinks, as Pillow does; the official code does not."""
    flip: float = 0.5
    """Probability of mirroring left to right."""
    jitter: float = 0.8
    """Probability of the four colour operations, which come in a random order per image."""
    brightness: float = 0.4
    """Largest change added to all pixels (official), or change of their factor (torchvision)."""
    contrast: float = 0.4
    """Largest change of the contrast factor from 1."""
    saturation: float = 0.2
    """Largest change of the saturation factor from 1."""
    hue: float = 0.1
    """Largest turn of the hue, in turns."""
    grayscale: float = 0.2
    """Probability of dropping the colour."""
    blur: tuple[float, float] = (1.0, 0.1)
    """Probability of the Gaussian blur."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Smallest and largest standard deviation of the blur, in pixels."""
    blur_size: float = 0.1
    """Length of the blur kernel as a share of the image height."""
    solarize: tuple[float, float] = (0.0, 0.2)
    """Probability of inverting the bright pixels."""
    solarize_threshold: float = 0.5
    """Pixels from this value on are inverted."""
    color: Literal["official", "torchvision"] = "official"
    """What the four colour operations mean: as in the official code, or as in torchvision and the libraries built on it."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    """Channel means that are subtracted; other than three channels use their average."""
    std: tuple[float, float, float] = IMAGENET_STD
    """Channel deviations that are divided by; other than three channels use their average."""

    def __post_init__(self) -> None:
        for name, length in _LENGTHS.items():
            _check(
                _are_numbers(getattr(self, name), length),
                name,
                getattr(self, name),
                f"{length} finite numbers",
            )
        shares = (
            "flip",
            "jitter",
            "brightness",
            "contrast",
            "saturation",
            "grayscale",
            "blur_size",
            "solarize_threshold",
        )
        for name in (*shares, "hue"):
            _check(_are_numbers([getattr(self, name)], 1), name, getattr(self, name), "a number")
        for name in shares:
            _check(0 <= getattr(self, name) <= 1, name, getattr(self, name), "a number from 0 to 1")
        for name in ("blur", "solarize", "crop_area"):
            _check(
                all(0 <= value <= 1 for value in getattr(self, name)),
                name,
                getattr(self, name),
                "numbers from 0 to 1",
            )
        _check(0 <= self.hue <= 0.5, "hue", self.hue, "a number from 0 to 0.5 turns")
        for name in ("crop_area", "crop_ratio", "blur_sigma"):
            low, high = getattr(self, name)
            _check(0 < low <= high, name, (low, high), "two positive numbers, the smaller one first")
        _check(min(self.std) > 0, "std", self.std, "positive numbers")
        _check(self.color in ("official", "torchvision"), "color", self.color, "official or torchvision")


class Views:
    """Draws two views of each image: `view1, view2 = Views(224)(images)`.

    `image_size` is the side, or (height, width), of the views in pixels. Images of one channel, or of more than three,
    get the operations that make sense for them: crop, flip, brightness, contrast, blur, solarize.
    """

    def __init__(
        self, image_size: int | tuple[int, int], config: ViewConfig | None = None, channels: int = 3
    ) -> None:
        self.size = height_and_width(image_size)
        if not isinstance(channels, int) or channels < 1:
            raise ConfigError(f"channels is {channels!r}; expected a whole number of at least 1.")
        self.config = config or ViewConfig()
        self.channels = channels
        self.mean, self.std = normalisation(self.config, channels)
        self.drawn = False  # whether views have ever been drawn
        self._looked = False  # at the scale of float images
        self._affine: dict[torch.device, tuple[Tensor, Tensor]] = {}

    @torch.no_grad()
    def __call__(self, images: Tensor, *, seed: int | None = None, step: int = 0) -> tuple[Tensor, Tensor]:
        """Two views, float32 (B, C, h, w) normalised, of images (B, C, H, W) uint8 or float in [0, 1].

        The draws follow from (seed, step, row); without a seed, from torch's own random state.
        """
        check_images(images, self.channels)
        self._check_scale(images)
        seed = int(torch.randint(2**62, ())) if seed is None else seed
        count, _, height, width = images.shape
        rows, steps = torch.arange(count), torch.full((count,), step)
        crops = [
            self.crop(images, self.draw_crops(seed, steps, rows, view, height, width)) for view in (0, 1)
        ]
        return self.finish(torch.stack(crops, dim=1), seed=seed, step=step)

    def draw_crops(
        self, seed: int, epochs: Tensor, indices: Tensor, view: int | Tensor, height: int, width: int
    ) -> Crops:
        """The crops of images of one size; see `byol.method.crops.draw_crops`."""
        heights, widths = torch.full_like(indices, height), torch.full_like(indices, width)
        config = self.config
        return draw_crops(
            seed,
            epochs,
            indices,
            view,
            heights,
            widths,
            area=config.crop_area,
            ratio=config.crop_ratio,
            flip=config.flip,
        )

    def crop(self, images: Tensor, crops: Crops) -> Tensor:
        """The crops of (N, C, H, W) uint8 or float images, float32 in [0, 1], (N, C, h, w)."""
        resized = crop_resize(images, crops, self.size, self.config.antialias)
        return resized.mul_(1 / 255 if images.dtype == torch.uint8 else 1).clamp_(0, 1)

    @torch.no_grad()
    def finish(self, crops: Tensor, *, seed: int, step: int, first_row: int = 0) -> tuple[Tensor, Tensor]:
        """Everything behind the crop: (B, 2, C, h, w) uint8 or float in [0, 1] to two normalised float32 (B, C, h, w).

        `first_row` is the first image's place in the step's whole batch, so that micro-batches and ranks draw what one
        large batch would.
        """
        if crops.ndim != 5 or crops.shape[1] != 2:
            raise ConfigError(f"finish got crops of shape {tuple(crops.shape)}; expected (B, 2, C, h, w).")
        self.drawn = True
        first, second = (self._view(crops[:, view], view, seed, step, first_row) for view in (0, 1))
        return first, second

    def _check_scale(self, images: Tensor) -> None:
        """Warn once when the first float images are not from 0 to 1. A look at every batch would wait for the device."""
        if self._looked or images.dtype == torch.uint8:
            return
        self._looked = True
        low, high = (float(end) for end in images.aminmax())
        if not (low >= 0 and high <= 1):
            logger.warning(
                "The first images hold numbers from %.3g to %.3g; expected floats from 0 to 1 (or uint8), so all others are "
                "clamped. Divide by 255, and leave the normalisation to the views.",
                low,
                high,
            )

    def prepare(self, images: Tensor) -> Tensor:
        """Images as evaluation feeds them to the encoder; see `prepare`."""
        check_images(images, self.channels)
        self._check_scale(images)
        return prepare(images, self.size, mean=self.mean, std=self.std)

    def _view(self, crops: Tensor, view: int, seed: int, step: int, first_row: int) -> Tensor:
        """One finished view of crops (B, C, h, w). On a CPU a few images at a time, which stay in its cache."""
        count = len(crops)
        drawn = uniforms((seed, Stream.VIEWS, step, torch.arange(first_row, first_row + count), view), 13)
        on_device = to_device(drawn.float(), crops.device)
        operations = self._operations(drawn, view, crops.shape[2])
        scale, shift = self._normalising(crops.device)
        result = torch.empty(crops.shape, dtype=torch.float32, device=crops.device)
        together = max(1, CACHE // crops[0].numel()) if crops.device.type == "cpu" else count
        for first in range(0, count, together):
            part = slice(first, first + together)
            x = to_float(crops[part])
            for operation in operations:
                x = operation(x, part, on_device[part])
            torch.mul(x.clamp_(0, 1), scale, out=result[part]).add_(
                shift
            )  # addcmul is slow where it broadcasts
        return result

    def _operations(self, drawn: Tensor, view: int, height: int) -> list["_Operation"]:
        """What is done to the images, in order, and to which of them."""
        config = self.config
        jittered = drawn[:, 0] < config.jitter
        order = drawn[:, 1:5].argsort(dim=1)  # (B, 4): which operation comes first, second, ...
        color_operations = self._color_operations()
        found = [
            _Operation(operation, jittered & (order[:, turn] == number), 5 + number, low, high)
            for turn in range(4)
            for number, (operation, low, high) in enumerate(color_operations)
        ]
        if self.channels == 3:
            found.append(_Operation(lambda x, _: color.grayscale(x), drawn[:, 9] < config.grayscale))
        taps = color.blur_taps(height, config.blur_size)
        if taps > 1:
            low, high = config.blur_sigma
            found.append(
                _Operation(
                    lambda x, s: color.blur(x, s, taps), drawn[:, 10] < config.blur[view], 11, low, high
                )
            )
        threshold = config.solarize_threshold
        found.append(
            _Operation(lambda x, _: color.solarize(x, threshold), drawn[:, 12] < config.solarize[view])
        )
        return found

    def _normalising(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Normalisation as a factor and a term for each channel, (1, C, 1, 1); kept, so that no step copies them again."""
        if device not in self._affine:
            factors = torch.tensor([1 / std for std in self.std], dtype=torch.float64)
            terms = -torch.tensor(self.mean, dtype=torch.float64) * factors
            scale, shift = (
                to_device(values.float().view(1, -1, 1, 1), device) for values in (factors, terms)
            )
            self._affine[device] = scale, shift
        return self._affine[device]

    def _color_operations(self) -> list[tuple[Callable[[Tensor, Tensor], Tensor], float, float]]:
        """The colour operations that make sense for these images, each with its parameter's range."""
        config = self.config
        factor = {
            name: (1 - getattr(config, name), 1 + getattr(config, name))
            for name in ("brightness", "contrast", "saturation")
        }
        if config.color == "official":
            operations: list[tuple[Callable[[Tensor, Tensor], Tensor], float, float]] = [
                (color.adjust_brightness, -config.brightness, config.brightness),
                (color.adjust_contrast, *factor["contrast"]),
                (color.adjust_saturation, *factor["saturation"]),
            ]
        else:
            operations = [
                (color.torchvision_brightness, *factor["brightness"]),
                (color.torchvision_contrast, *factor["contrast"]),
                (color.torchvision_saturation, *factor["saturation"]),
            ]
        operations.append((color.adjust_hue, -config.hue, config.hue))
        return operations if self.channels == 3 else operations[:2]


class _Operation:
    """An operation and the images it was drawn for, which is known on the host: nothing waits for the device.

    Its parameter is uniform in [low, high) and comes from a column of the draws.
    """

    def __init__(
        self,
        apply: Callable[[Tensor, Tensor], Tensor],
        chosen: Tensor,
        column: int = 0,
        low: float = 0.0,
        high: float = 1.0,
    ) -> None:
        self.apply, self.column, self.low, self.high = apply, column, low, high
        self.places: list[int] = chosen.nonzero().flatten().tolist()  # of bool (B,), on the host

    def __call__(self, x: Tensor, part: slice, drawn: Tensor) -> Tensor:
        """The images x, those `part` of the batch, with the chosen ones replaced by what the operation makes of them."""
        here = self.places[bisect_left(self.places, part.start) : bisect_left(self.places, part.stop)]
        if not here:
            return x
        parameter = self.low + (self.high - self.low) * drawn[:, self.column]
        if len(here) == len(x):
            return self.apply(x, parameter).contiguous()
        rows = to_device(torch.tensor(here) - part.start, x.device)
        return x.index_copy_(0, rows, self.apply(x.index_select(0, rows), parameter.index_select(0, rows)))


def height_and_width(image_size: int | Sequence[int]) -> tuple[int, int]:
    """The size of an image, given as its side or as (height, width)."""
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    is_pair = isinstance(size, Sequence) and len(size) == 2
    if not is_pair or not all(isinstance(number, int) and number > 0 for number in size):
        raise ConfigError(
            f"image_size is {image_size!r}; expected a positive side or (height, width), in pixels."
        )
    return size[0], size[1]


def normalisation(config: ViewConfig, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each channel; for other than three channels the average of the three."""
    if channels == 3:
        return config.mean, config.std
    return (sum(config.mean) / 3,) * channels, (sum(config.std) / 3,) * channels


def _are_numbers(values: object, length: int) -> bool:
    """Whether this is a sequence of so many finite numbers."""
    if not isinstance(values, Sequence) or len(values) != length:
        return False
    return all(isinstance(value, int | float) and math.isfinite(value) for value in values)


def _check(holds: bool, name: str, value: object, expected: str) -> None:
    if not holds:
        raise ConfigError(f"views.{name} is {value}; expected {expected}.")

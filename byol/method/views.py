"""Two views of every image, as the paper draws them (Appendix B, Table 6; official augmentations.py).

A draw per image, asymmetric between the views: view 1 is always blurred and never solarized, view 2 is
blurred in 10 % and solarized in 20 % of the images. All draws follow from (seed, step, row) and are made on
the host.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from byol.errors import ConfigError
from byol.method import color
from byol.method.crops import Crops, crop_boxes, crop_draws, crop_resize, to_device
from byol.method.draws import Stream, uniforms
from byol.method.pixels import IMAGENET_MEAN, IMAGENET_STD, ScaleCheck, check_images, prepare, to_float

CACHE = 2**18  # numbers that are worked on at once on a CPU, so that they stay in its cache
Function = Callable[[Tensor, Tensor], Tensor]  # images and a parameter for each, (B,), to images
Operation = tuple[Function, list[int], Tensor]  # with the rows it is for, and its parameter (B,)


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
    """What the four colour operations mean: as in the official code, or as in torchvision."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    """Channel means that are subtracted; other than three channels use their average."""
    std: tuple[float, float, float] = IMAGENET_STD
    """Channel standard deviations that are divided by; other than three channels use their average."""

    def __post_init__(self) -> None:
        pairs = ("crop_area", "crop_ratio", "blur_sigma")
        for name in (field.name for field in fields(self) if field.name not in ("antialias", "color")):
            value = getattr(self, name)
            length = 3 if name in ("mean", "std") else 2 if name in (*pairs, "blur", "solarize") else 1
            numbers = [value] if length == 1 else list(value) if isinstance(value, Sequence) else []
            finite = all(isinstance(number, int | float) and math.isfinite(number) for number in numbers)
            _check(
                finite and len(numbers) == length, name, value, f"{length} finite number{'s'[: length > 1]}"
            )
            if name not in ("crop_ratio", "blur_sigma", "mean", "std"):
                most = 0.5 if name == "hue" else 1
                _check(min(numbers) >= 0 and max(numbers) <= most, name, value, f"from 0 to {most}")
            if name in pairs:
                low, high = numbers
                _check(0 < low <= high, name, value, "two positive numbers, the smaller one first")
        _check(min(self.std) > 0, "std", self.std, "positive numbers")
        _check(self.color in ("official", "torchvision"), "color", self.color, "official or torchvision")

    def crops(self, drawn: Tensor, heights: Tensor, widths: Tensor) -> Crops:
        """The crops that `crop_draws` (N, 5) make of images of these sizes, int64 (N,)."""
        return crop_boxes(drawn, heights, widths, area=self.crop_area, ratio=self.crop_ratio, flip=self.flip)


class Views:
    """Draws two views of each image: `view1, view2 = Views(224)(images)`.

    `image_size` is the side, or (height, width), of the views in pixels. Images of one channel, or of more
    than three, get the operations that make sense for them: crop, flip, brightness, contrast, blur, solarize.
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
        self.drawn = False  # whether these views were ever drawn
        self._check_scale = ScaleCheck()

    @torch.no_grad()
    def __call__(self, images: Tensor, *, seed: int | None = None, step: int = 0) -> tuple[Tensor, Tensor]:
        """Two views, float32 (B, C, h, w) normalised, of images (B, C, H, W) uint8 or float in [0, 1].

        The draws follow from (seed, step, row); without a seed, from torch's own random state.
        """
        check_images(images, self.channels)
        self._check_scale(images)
        seed = int(torch.randint(2**62, ())) if seed is None else seed
        rows = torch.arange(len(images))
        steps, heights, widths = (torch.full_like(rows, value) for value in (step, *images.shape[2:]))
        crops = []
        for view in (0, 1):
            boxes = self.config.crops(crop_draws(seed, steps, rows, view), heights, widths)
            resized = crop_resize(images, boxes, self.size, self.config.antialias)
            crops.append(resized.mul_(1 / 255 if images.dtype == torch.uint8 else 1).clamp_(0, 1))
        return self.finish(torch.stack(crops, dim=1), seed=seed, step=step)

    @torch.no_grad()
    def finish(self, crops: Tensor, *, seed: int, step: int, first_row: int = 0) -> tuple[Tensor, Tensor]:
        """Everything behind the crop: (B, 2, C, h, w) uint8 or float in [0, 1] to two float32 (B, C, h, w).

        `first_row` is the first image's place in the step's whole batch, so that micro-batches and ranks draw
        what one large batch would.
        """
        if crops.ndim != 5 or crops.shape[1] != 2:
            raise ConfigError(f"finish got crops of shape {tuple(crops.shape)}; expected (B, 2, C, h, w).")
        self.drawn = True
        first, second = (self._view(crops[:, view], view, seed, step, first_row) for view in (0, 1))
        return first, second

    def prepare(self, images: Tensor) -> Tensor:
        """Images as evaluation feeds them to the encoder; see `prepare`."""
        check_images(images, self.channels)
        self._check_scale(images)
        return prepare(images, self.size, mean=self.mean, std=self.std)

    def _view(self, crops: Tensor, view: int, seed: int, step: int, first_row: int) -> Tensor:
        """One finished view of crops (B, C, h, w). On a CPU some images at a time, to stay in its cache."""
        count = len(crops)
        drawn = uniforms((seed, Stream.VIEWS, step, torch.arange(first_row, first_row + count), view), 13)
        operations = self._operations(drawn, to_device(drawn.float(), crops.device), view, crops.shape[2])
        scale, shift = _affine(self.mean, self.std, crops.device)
        result = torch.empty(crops.shape, dtype=torch.float32, device=crops.device)
        together = max(1, CACHE // crops[0].numel()) if crops.device.type == "cpu" else count
        for first in range(0, count, together):
            part = slice(first, first + together)
            x = to_float(crops[part])
            for operation in operations:
                x = _apply(operation, x, part)
            # addcmul is slow where it broadcasts.
            torch.mul(x.clamp_(0, 1), scale, out=result[part]).add_(shift)
        return result

    def _operations(self, drawn: Tensor, on_device: Tensor, view: int, height: int) -> list[Operation]:
        """What is done to the images, in order, and to which; a parameter is uniform in [low, high)."""
        config, found = self.config, list[Operation]()

        def add(function: Function, chosen: Tensor, column: int, low: float, high: float) -> None:
            # Chosen on the host, so that nothing waits for the device.
            rows: list[int] = chosen.nonzero().flatten().tolist()
            found.append((function, rows, low + (high - low) * on_device[:, column]))

        jittered = drawn[:, 0] < config.jitter
        order = drawn[:, 1:5].argsort(dim=1)  # (B, 4): which operation comes first, second, ...
        amounts = (config.brightness, config.contrast, config.saturation, config.hue)
        neutral = (0.0 if config.color == "official" else 1.0, 1.0, 1.0, 0.0)
        ranges = list(zip(color.JITTER[config.color], neutral, amounts, strict=True))
        for turn in range(4):
            for number, (function, centre, amount) in enumerate(ranges[: 4 if self.channels == 3 else 2]):
                chosen = jittered & (order[:, turn] == number)
                add(function, chosen, 5 + number, centre - amount, centre + amount)
        if self.channels == 3:
            add(lambda x, _: color.grayscale(x), drawn[:, 9] < config.grayscale, 0, 0, 1)
        taps = color.blur_taps(height, config.blur_size)
        if taps > 1:
            add(lambda x, s: color.blur(x, s, taps), drawn[:, 10] < config.blur[view], 11, *config.blur_sigma)
        threshold = config.solarize_threshold
        add(lambda x, _: color.solarize(x, threshold), drawn[:, 12] < config.solarize[view], 0, 0, 1)
        return found


def _apply(operation: Operation, x: Tensor, part: slice) -> Tensor:
    """The images x, those `part` of the batch, with the operation done to the chosen ones."""
    function, rows, parameter = operation
    here = rows[bisect_left(rows, part.start) : bisect_left(rows, part.stop)]
    if not here:
        return x
    if len(here) == len(x):
        return function(x, parameter[part]).contiguous()
    places = to_device(torch.tensor(here) - part.start, x.device)
    changed = function(x.index_select(0, places), parameter[part].index_select(0, places))
    return x.index_copy_(0, places, changed)


@lru_cache(maxsize=8)
def _affine(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Normalisation as a factor and a term a channel, (1, C, 1, 1); kept: no step copies them again."""
    factors = torch.tensor([1 / value for value in std], dtype=torch.float64)
    terms = -torch.tensor(mean, dtype=torch.float64) * factors
    scale, shift = (to_device(values.float().view(1, -1, 1, 1), device) for values in (factors, terms))
    return scale, shift


def height_and_width(image_size: int | tuple[int, int]) -> tuple[int, int]:
    """The size of an image, given as its side or as (height, width)."""
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    is_pair = isinstance(size, Sequence) and len(size) == 2
    if not is_pair or not all(isinstance(number, int) and number > 0 for number in size):
        raise ConfigError(f"image_size is {image_size!r}; expected a positive side or (height, width).")
    return size[0], size[1]


def normalisation(config: ViewConfig, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel; for other than three channels the average of the three."""
    if channels == 3:
        return tuple(config.mean), tuple(config.std)
    return (sum(config.mean) / 3,) * channels, (sum(config.std) / 3,) * channels


def _check(holds: bool, name: str, value: object, expected: str) -> None:
    if not holds:
        raise ConfigError(f"views.{name} is {value}; expected {expected}.")

"""Two views of every image, as the paper draws them (Appendix B, Table 6; official augmentations.py).

A draw per image, asymmetric between the views: view 1 is always blurred and never solarized, view 2 is
blurred in 10 % and solarized in 20 % of the images. All draws follow from (seed, step, row) and are made on
the host.
"""

import sys
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, distributed

from byol.errors import ConfigError
from byol.method import color
from byol.method.crops import Crops, Size, crop_boxes, crop_draws, crop_resize, to_device
from byol.method.draws import Stream, seed_of, uniforms
from byol.method.pixels import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ImageCheck,
    normalise_,
    per_channel,
    prepare,
    to_float,
)
from byol.method.shared_norm import several_processes

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
    vertical_flip: float = 0.0
    """Probability of mirroring top to bottom, for images without an up and a down (not the paper's)."""
    turn: float = 0.0
    """Probability of a quarter turn, for images without an up and a down (not the paper's)."""
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
    mean: tuple[float, ...] = IMAGENET_MEAN
    """Mean of each channel, which is subtracted. Of three, other than three channels use the average."""
    std: tuple[float, ...] = IMAGENET_STD
    """Standard deviation of each channel, which is divided by; likewise."""

    def __post_init__(self) -> None:
        tiny, huge = sys.float_info.min, sys.float_info.max
        for names, count, low, high, expected in (
            ("flip vertical_flip turn jitter grayscale", 1, 0, 1, "a number from 0 to 1"),
            ("brightness contrast saturation", 1, 0, 1, "a number from 0 to 1"),
            ("blur_size solarize_threshold", 1, 0, 1, "a number from 0 to 1"),
            ("hue", 1, 0, 0.5, "a number from 0 to 0.5"),
            ("blur solarize", 2, 0, 1, "two numbers from 0 to 1"),
            ("crop_area", 2, tiny, 1, "two numbers above 0 and up to 1, the smaller one first"),
            ("crop_ratio blur_sigma", 2, tiny, huge, "two positive numbers, the smaller one first"),
            ("mean", 0, -huge, huge, "a finite number for each channel"),
            ("std", 0, tiny, huge, "a positive number for each channel"),
        ):
            for name in names.split():
                value = getattr(self, name)
                numbers = [value] if count == 1 else list(value) if isinstance(value, Sequence) else []
                right = all(isinstance(number, int | float) and low <= number <= high for number in numbers)
                if (
                    not right
                    or len(numbers) != (count or max(1, len(numbers)))
                    or (low == tiny and count == 2 and numbers != sorted(numbers))
                ):
                    raise ConfigError(f"views.{name} is {value}; expected {expected}.")
        if self.color not in color.JITTER:
            raise ConfigError(f"views.color is {self.color!r}; expected official or torchvision.")

    def crops(self, drawn: Tensor, heights: Tensor, widths: Tensor) -> Crops:
        """The crops that `crop_draws` (N, 5) make of images of these sizes, int64 (N,)."""
        return crop_boxes(drawn, heights, widths, self.crop_area, self.crop_ratio, self.flip)


class Views:
    """Draws two views of each image: `view1, view2 = Views(224)(images)`.

    `image_size` is the side, or (height, width), of the views in pixels. Images of one channel, or of more
    than three, get the operations that make sense for them: crop, flip, brightness, contrast, blur, solarize.
    """

    def __init__(self, image_size: int | Size, config: ViewConfig | None = None, channels: int = 3) -> None:
        if not isinstance(channels, int) or channels < 1:
            raise ConfigError(f"channels is {channels!r}; expected a whole number of at least 1.")
        self.size, self.config, self.channels = height_and_width(image_size), config or ViewConfig(), channels
        if self.config.turn and self.size[0] != self.size[1]:
            raise ConfigError(f"views.turn is {self.config.turn}, but views of {self.size} are not square.")
        self.mean, self.std = normalisation(self.config, channels)
        scale = tuple(1 / std for std in self.std)
        self._affine = scale, tuple(-mean * factor for mean, factor in zip(self.mean, scale, strict=True))
        self.drawn = False  # whether these views were ever drawn
        self._check = ImageCheck(channels)

    @torch.no_grad()
    def __call__(self, images: Tensor, *, seed: int | None = None, step: int = 0) -> tuple[Tensor, Tensor]:
        """Two views, float32 (B, C, h, w) normalised, of images (B, C, H, W) uint8 or float in [0, 1].

        The draws follow from (seed, step, row); without a seed, from torch's own random state and, of several
        processes, the rank.
        """
        self._check(images)
        if seed is None:
            seed = int(torch.randint(2**62, ()))
            if several_processes():  # which often have all the same seed
                seed = seed_of(seed, distributed.get_rank())
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
        view1, view2 = self.finish_all(crops, seed=seed, step=step, first_row=first_row)
        return view1, view2

    @torch.no_grad()
    def finish_all(
        self, crops: Tensor, *, seed: int, step: int, first_row: int = 0, stream: Stream = Stream.VIEWS
    ) -> tuple[Tensor, ...]:
        """As `finish`, for V crops of each image (B, V, C, h, w): in turn drawn as view 1 and as view 2."""
        self.drawn = True
        rows = torch.arange(first_row, first_row + len(crops))
        return tuple(
            self._view(one, uniforms((seed, stream, step, rows, view), 15), view % 2)
            for view, one in enumerate(crops.unbind(1))
        )

    def prepare(self, images: Tensor) -> Tensor:
        """Images as evaluation feeds them to the encoder, normalised."""
        self._check(images)
        return normalise_(prepare(images, self.size), self.mean, self.std)

    def _view(self, crops: Tensor, drawn: Tensor, view: int) -> Tensor:
        """One finished view of crops (B, C, h, w). On a CPU some images at a time, to stay in its cache."""
        operations = self._operations(drawn, to_device(drawn.float(), crops.device), view, crops.shape[2])
        scale, shift = (per_channel(values, crops.device) for values in self._affine)
        result = torch.empty(crops.shape, dtype=torch.float32, device=crops.device)
        together = max(1, CACHE // crops[0].numel()) if crops.device.type == "cpu" else len(crops)
        for first in range(0, len(crops), together):
            part = slice(first, first + together)
            x = to_float(crops[part])
            for function, rows, parameter in operations:
                here = rows[bisect_left(rows, part.start) : bisect_left(rows, part.stop)]
                if len(here) == len(x):
                    x = function(x, parameter[part]).contiguous()
                elif here:
                    places = to_device(torch.tensor(here) - first, x.device)
                    changed = function(x.index_select(0, places), parameter[part].index_select(0, places))
                    x.index_copy_(0, places, changed)
            # Not addcmul, which is slow where it broadcasts.
            torch.mul(x.clamp_(0, 1), scale, out=result[part]).add_(shift)
        return result

    def _operations(self, drawn: Tensor, on_device: Tensor, view: int, height: int) -> list[Operation]:
        """What is done to the images, in order, and to which; a parameter is uniform in [low, high)."""
        config, found = self.config, list[Operation]()

        def add(function: Function, chosen: Tensor, column: int, low: float, high: float) -> None:
            # Chosen on the host, so that nothing waits for the device.
            rows: list[int] = chosen.nonzero().flatten().tolist()
            found.append((function, rows, low + (high - low) * on_device[:, column]))

        # With both flips and turns at 0.5 all eight ways to lay a square are equally likely.
        add(lambda x, _: x.flip(2), drawn[:, 13] < config.vertical_flip, 0, 0, 1)
        add(lambda x, _: x.rot90(1, (2, 3)), drawn[:, 14] < config.turn, 0, 0, 1)
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


def height_and_width(image_size: int | Size) -> Size:
    """The size of an image, from its side or (height, width)."""
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    is_pair = isinstance(size, Sequence) and len(size) == 2
    if not is_pair or not all(isinstance(number, int) and number > 0 for number in size):
        raise ConfigError(f"image_size is {image_size!r}; expected a positive side or (height, width).")
    return size[0], size[1]


def normalisation(config: ViewConfig, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel; of three, other than three channels get the average.

    Raises ConfigError for any other count of numbers than of channels.
    """
    found = []
    for name, values in (("mean", config.mean), ("std", config.std)):
        if len(values) not in (3, channels):
            raise ConfigError(
                f"views.{name} has {len(values)} numbers, and the images have {channels} channels. Give a "
                "number for each channel, or three, whose average is taken."
            )
        found.append(tuple(values) if len(values) == channels else (sum(values) / 3,) * channels)
    return found[0], found[1]

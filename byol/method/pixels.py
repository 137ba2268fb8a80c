"""Pixels as a network is fed them: checked, from 0 to 1, normalised; and evaluation's view of an image."""

import logging
from functools import lru_cache

import torch
from torch import Tensor

from byol.errors import ConfigError
from byol.method.crops import Crops, Interpolation, Size, crop_resize, to_device

logger = logging.getLogger("byol")

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def prepare(
    images: Tensor,
    size: Size,
    crop_ratio: float = 0.875,
    antialias: bool = True,
    interpolation: Interpolation = "bicubic",
) -> Tensor:
    """What evaluation feeds an encoder, not normalised yet: float32 (N, C, h, w) in [0, 1].

    Images that have the size already are taken whole. Of others the central square of side int(crop_ratio x
    the shorter side) is resized, by default antialiased bicubic (official dataset.py: without antialiasing).
    """
    height, width = images.shape[2:]
    if (height, width) == size:
        return to_float(images)
    side = max(1, int(crop_ratio * min(height, width)))
    box = torch.tensor([[(height - side + 1) // 2, (width - side + 1) // 2, side, side]])
    crops = Crops(box.expand(len(images), 4), torch.zeros(len(images), dtype=torch.bool))
    x = crop_resize(images, crops, size, antialias, interpolation)
    return x.mul_(1 / 255 if images.dtype == torch.uint8 else 1).clamp_(0, 1)


def to_float(images: Tensor) -> Tensor:
    """A float32 copy in [0, 1] of uint8 or float images."""
    x = images.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
    return x.mul_(1 / 255) if images.dtype == torch.uint8 else x


def normalise_(x: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Subtract the channel means and divide by the channel standard deviations, in place."""
    return x.sub_(per_channel(tuple(mean), x.device)).div_(per_channel(tuple(std), x.device))


@lru_cache(maxsize=16)
def per_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    """A value a channel, (1, C, 1, 1) float32; kept: no step copies them again."""
    return to_device(torch.tensor(values).view(1, -1, 1, 1), device)


class ImageCheck:
    """Raises ConfigError for anything but a batch of images with these channels.

    Warns once of floats that are not from 0 to 1. On a GPU, which the host would wait for, only the first
    images are looked at.
    """

    def __init__(self, channels: int) -> None:
        self.channels, self.looked, self.told = channels, False, False

    def __call__(self, images: Tensor) -> None:
        if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[1] != self.channels:
            came = f"shape {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
            raise ConfigError(f"The images came as {came}; expected a tensor (B, {self.channels}, H, W).")
        if 0 in images.shape:
            raise ConfigError(f"The images have shape {tuple(images.shape)}; expected at least one image.")
        if images.dtype == torch.uint8:
            return
        if not images.is_floating_point():
            raise ConfigError(f"The images came as {images.dtype}; expected uint8, or floats in [0, 1].")
        if self.told or (self.looked and images.device.type != "cpu"):
            return
        self.looked = True
        low, high = (float(end) for end in images.aminmax())
        if not (low >= 0 and high <= 1):
            self.told = True
            logger.warning(
                f"The images hold numbers from {low:.3g} to {high:.3g}; expected floats from 0 to 1, or "
                "uint8. Divide by 255, and leave the normalisation out: it is done here."
            )

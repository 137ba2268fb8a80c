"""Pixels as a network is fed them: checked, from 0 to 1, normalised; and evaluation's view of an image."""

import logging

import torch
from torch import Tensor

from byol.errors import ConfigError
from byol.method.crops import Crops, Interpolation, crop_resize, to_device

logger = logging.getLogger("byol")

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def prepare(
    images: Tensor,
    size: tuple[int, int],
    *,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    crop_ratio: float = 0.875,
    interpolation: Interpolation = "bicubic",
    antialias: bool = True,
) -> Tensor:
    """What evaluation feeds an encoder: float32 (N, C, h, w), normalised when mean and std are given.

    Images that have the size already are taken whole. Of others the central square of side int(crop_ratio x
    the shorter side) is resized, by default antialiased bicubic (official dataset.py: without antialiasing).
    """
    height, width = images.shape[2:]
    if (height, width) == size:
        x = to_float(images)
    else:
        side = max(1, int(crop_ratio * min(height, width)))
        box = torch.tensor([[(height - side + 1) // 2, (width - side + 1) // 2, side, side]])
        crops = Crops(box.expand(len(images), 4), torch.zeros(len(images), dtype=torch.bool))
        x = crop_resize(images, crops, size, antialias, interpolation)
        x = x.mul_(1 / 255 if images.dtype == torch.uint8 else 1).clamp_(0, 1)
    return x if mean is None or std is None else normalise_(x, mean, std)


def to_float(images: Tensor) -> Tensor:
    """A float32 copy in [0, 1] of uint8 or float images."""
    if images.dtype == torch.uint8:
        return images.to(torch.float32, memory_format=torch.contiguous_format).mul_(1 / 255)
    return images.to(torch.float32, memory_format=torch.contiguous_format, copy=True)


def normalise_(x: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Subtract the channel means and divide by the channel standard deviations, in place."""
    means, stds = (torch.tensor(values, dtype=x.dtype).view(1, -1, 1, 1) for values in (mean, std))
    return x.sub_(to_device(means, x.device)).div_(to_device(stds, x.device))


def check_images(images: Tensor, channels: int) -> None:
    """Raise ConfigError for anything but a batch of images with these channels."""
    if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[1] != channels:
        came = f"shape {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise ConfigError(f"The images came as {came}; expected a tensor (B, {channels}, H, W).")
    if 0 in images.shape:
        raise ConfigError(f"The images came with shape {tuple(images.shape)}; expected at least one image.")
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise ConfigError(f"The images came as {images.dtype}; expected uint8, or floating point in [0, 1].")


class ScaleCheck:
    """Warns when the first float images are not from 0 to 1; to look at all would make the host wait."""

    def __init__(self) -> None:
        self.done = False

    def __call__(self, images: Tensor) -> None:
        if self.done or images.dtype == torch.uint8:
            return
        self.done = True
        low, high = (float(end) for end in images.aminmax())
        if not (low >= 0 and high <= 1):
            logger.warning(
                "The first images hold numbers from %.3g to %.3g; expected floats from 0 to 1 (or uint8). "
                "Divide by 255, and leave the normalisation out: it is done here.", low, high,
            )  # fmt: skip

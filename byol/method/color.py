"""The operations that views are made of: float images (N, C, H, W) in [0, 1], one parameter (N,) per image.

As in the official augmentations.py: additive brightness, contrast around each channel's own mean, saturation
and hue in HSV, a blur that sees zeros beyond the border. The torchvision_* functions are that library's.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

LUMA = (0.2989, 0.5870, 0.1140)
BLOCK = 32  # pixels that the blur makes at once along an axis


def per_image(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


def adjust_brightness(x: Tensor, delta: Tensor) -> Tensor:
    """Add delta to every channel."""
    return (x + per_image(delta)).clamp_(0, 1)


def adjust_contrast(x: Tensor, factor: Tensor) -> Tensor:
    """Scale the distance from each channel's mean."""
    mean = x.mean(dim=(2, 3), keepdim=True)
    return (x * per_image(factor)).add_(mean * (1 - per_image(factor))).clamp_(0, 1)


def adjust_saturation(x: Tensor, factor: Tensor) -> Tensor:
    """Multiply HSV saturation, limited to 1, at constant hue and value.

    No conversion is needed: with V the largest and m the smallest channel, x' = V - (V - x) min(factor, V /
    (V - m)).
    """
    largest, smallest = extremes(x)
    most = largest / (largest - smallest).clamp_min_(1e-12)
    return largest.lerp(x, torch.minimum(per_image(factor), most, out=most)).clamp_(0, 1)


def adjust_hue(x: Tensor, delta: Tensor) -> Tensor:
    """Turn the HSV hue by delta turns, from -0.5 to 0.5, at constant saturation and value.

    The hue h goes from 0 to 6. With m the smallest channel, a channel is m + chroma times a trapezoid of h:
    clamp(|h - 3| - 1) for red, clamp(2 - |h - 2|) for green, clamp(2 - |h - 4|) for blue, each to [0, 1]. The
    hue itself is 1 + (green + blue - red - m) / chroma in the half of the circle where green >= blue, and its
    negative in the other: plain arithmetic, several times faster on a CPU than comparing and choosing.
    """
    red, green, blue = x.split(1, dim=1)
    largest, smallest = extremes(x)
    chroma = largest.sub_(smallest)
    # Without any colour this is 1, and nothing shows it.
    hue = (green + blue).sub_(red).sub_(smallest).div_(chroma.clamp_min(1e-12)).add_(1)
    hue = hue.copysign_(green - blue).add_(6 * per_image(delta))
    hue = hue.sub_((hue / 6).floor_(), alpha=6)
    result = torch.empty_like(x)
    for channel, (centre, sign, offset) in enumerate(((3, 1, -1), (2, -1, 2), (4, -1, 2))):
        trapezoid = (hue - centre).abs_().mul_(sign).add_(offset).clamp_(0, 1)
        torch.addcmul(smallest, chroma, trapezoid, out=result[:, channel : channel + 1])
    return result.clamp_(0, 1)


def extremes(x: Tensor) -> tuple[Tensor, Tensor]:
    """The largest and the smallest channel of colour images, each (N, 1, H, W)."""
    red, green, blue = x.split(1, dim=1)
    return torch.maximum(red, green).maximum(blue), torch.minimum(red, green).minimum(blue)


def torchvision_brightness(x: Tensor, factor: Tensor) -> Tensor:
    """Multiply every channel."""
    return (x * per_image(factor)).clamp_(0, 1)


def torchvision_contrast(x: Tensor, factor: Tensor) -> Tensor:
    """Scale the distance from the mean of the gray image."""
    mean = (luma(x) if x.shape[1] == 3 else x).mean(dim=(1, 2, 3), keepdim=True)
    return mean.lerp(x, per_image(factor)).clamp_(0, 1)


def torchvision_saturation(x: Tensor, factor: Tensor) -> Tensor:
    """Scale the distance from the gray image."""
    return luma(x).lerp(x, per_image(factor)).clamp_(0, 1)


def luma(x: Tensor) -> Tensor:
    """The gray image (N, 1, H, W) of a colour one."""
    red, green, blue = x.split(1, dim=1)
    gray: Tensor = (red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])
    return gray


# The jitter in the order of its draws; the paper's order is random.
JITTER = {
    "official": (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue),
    "torchvision": (torchvision_brightness, torchvision_contrast, torchvision_saturation, adjust_hue),
}


def grayscale(x: Tensor) -> Tensor:
    """The gray image in all three channels."""
    return luma(x).expand_as(x)


def solarize(x: Tensor, threshold: float = 0.5) -> Tensor:
    """Invert what is not below the threshold."""
    return torch.where(x < threshold, x, 1 - x)


def blur_taps(height: int, share: float = 0.1) -> int:
    """Taps of the blur for an image height: 23 at 224 pixels, 3 at 32 (official augmentations.py)."""
    return 2 * int(height * share / 2) + 1


def blur(x: Tensor, sigma: Tensor, taps: int) -> Tensor:
    """Gaussian blur of an odd number of taps; beyond the border there is black, as in the official code.

    Along each axis a product with a band matrix, which takes one sigma per image, in blocks along the band: a
    quarter of the whole product at 224 pixels.
    """
    count, channels, height, width = x.shape
    reach, size = taps // 2, min(BLOCK, max(height, width))
    offsets = torch.arange(taps, device=x.device) - reach
    kernel = torch.exp(-offsets.square() / (2 * sigma[:, None].square()))  # (N, taps)
    kernel = kernel / kernel.sum(dim=1, keepdim=True)
    # Weights (N, size + taps - 1, size) of the pixels around a block: column j is centred at row j + reach.
    tap = torch.arange(size + 2 * reach, device=x.device)[:, None] - torch.arange(size, device=x.device)
    band = kernel[:, tap.clamp(0, taps - 1)] * ((tap >= 0) & (tap < taps))

    def blocks(length: int) -> Iterator[tuple[slice, slice, Tensor]]:
        for start in range(0, length, size):
            stop = min(length, start + size)
            low, high, first = max(0, start - reach), min(length, stop + reach), start - reach
            yield slice(start, stop), slice(low, high), band[:, low - first : high - first, : stop - start]

    rows = x.reshape(count, channels * height, width)
    wide, tall = torch.empty_like(rows), torch.empty_like(x)
    with torch.autocast(x.device.type, enabled=False):
        for here, around, weights in blocks(width):
            wide[:, :, here] = torch.bmm(rows[:, :, around], weights)
        for here, around, weights in blocks(height):
            tall[:, :, here] = torch.matmul(weights.mT[:, None], wide.view(x.shape)[:, :, around])
    return tall

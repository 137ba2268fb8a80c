"""The operations that views are made of, each on float images (N, C, H, W) in [0, 1] with one parameter per image.

As in the official augmentations.py: additive brightness, contrast around each channel's own mean, saturation and hue in
HSV, a blur that sees zeros beyond the border. The torchvision_* functions are what other libraries mean by the words.
"""

import torch
from torch import Tensor

LUMA = (0.2989, 0.5870, 0.1140)


def per_image(values: Tensor) -> Tensor:
    """(N,) as (N, 1, 1, 1)."""
    return values.view(-1, 1, 1, 1)


def adjust_brightness(x: Tensor, delta: Tensor) -> Tensor:
    """Add delta to every channel."""
    return (x + per_image(delta)).clamp_(0, 1)


def adjust_contrast(x: Tensor, factor: Tensor) -> Tensor:
    """Scale the distance from each channel's mean."""
    mean = x.mean(dim=(2, 3), keepdim=True)
    factor = per_image(factor)
    return torch.addcmul(mean * (1 - factor), x, factor).clamp_(0, 1)


def adjust_saturation(x: Tensor, factor: Tensor) -> Tensor:
    """Multiply HSV saturation, limited to 1, at constant hue and value.

    No conversion is needed: with V and m the largest and smallest channel, x' = V - (V - x) min(factor, V / (V - m)).
    """
    largest, smallest = extremes(x)
    most = largest / (largest - smallest).clamp_min_(1e-12)
    return largest.lerp(x, torch.minimum(per_image(factor), most, out=most)).clamp_(0, 1)


def adjust_hue(x: Tensor, delta: Tensor) -> Tensor:
    """Turn the HSV hue by delta turns at constant saturation and value.

    With h the hue in sixths of a turn, from 0 to 6, and m the smallest channel, a channel is m + chroma times a trapezoid
    of h: clamp(|h - 3| - 1) for red, clamp(2 - |h - 2|) for green and clamp(2 - |h - 4|) for blue, each to [0, 1].
    """
    red, green, blue = x.split(1, dim=1)
    largest, smallest = extremes(x)
    chroma = largest - smallest
    # Where there is no colour, all differences are 0, and so is the hue.
    sector = torch.where(largest == red, green - blue, torch.where(largest == green, blue - red, red - green))
    sixths = sector.div_(chroma.clamp_min(1e-12))
    sixths += torch.where(largest == red, 0.0, torch.where(largest == green, 2.0, 4.0)) + 6 * per_image(delta)
    sixths -= (sixths / 6).floor_().mul_(6)
    result = torch.empty_like(x)
    for channel, (centre, sign, offset) in enumerate(((3, 1, -1), (2, -1, 2), (4, -1, 2))):
        trapezoid = (sixths - centre).abs_().mul_(sign).add_(offset).clamp_(0, 1)
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
    weights = torch.tensor(LUMA, dtype=x.dtype, device=x.device).view(1, 3, 1, 1)
    return (x * weights).sum(dim=1, keepdim=True)


def grayscale(x: Tensor) -> Tensor:
    """The gray image in all three channels."""
    return luma(x).expand_as(x)


def solarize(x: Tensor, threshold: float = 0.5) -> Tensor:
    """Invert what is not below the threshold."""
    return torch.where(x < threshold, x, 1 - x)


def blur(x: Tensor, sigma: Tensor, taps: int) -> Tensor:
    """Gaussian blur of an odd number of taps; beyond the border there is black, as in the official code.

    Along each axis a product with a band matrix, which takes one sigma per image.
    """
    count, channels, height, width = x.shape
    rows = blur_matrix(sigma, taps, height)
    columns = rows if height == width else blur_matrix(sigma, taps, width)
    with torch.autocast(x.device.type, enabled=False):
        horizontal = torch.bmm(x.reshape(count, channels * height, width), columns)
        return torch.matmul(rows[:, None], horizontal.view(x.shape))


def blur_matrix(sigma: Tensor, taps: int, size: int) -> Tensor:
    """Symmetric band matrices (N, size, size) of normalised Gaussian weights."""
    radius = taps // 2
    offsets = torch.arange(-radius, radius + 1, device=sigma.device)
    kernel = torch.exp(-offsets.square() / (2 * sigma[:, None].square()))  # (N, taps)
    kernel = kernel / kernel.sum(dim=1, keepdim=True)
    places = torch.arange(size, device=sigma.device)
    distance = places[None, :] - places[:, None] + radius  # (size, size) index into the kernel
    inside = (distance >= 0) & (distance < taps)
    return kernel[:, distance.clamp(0, taps - 1)] * inside


def blur_taps(height: int, share: float = 0.1) -> int:
    """Taps of the blur for an image height: 23 at 224 pixels, 3 at 32 (official augmentations.py)."""
    return 2 * int(height * share / 2) + 1

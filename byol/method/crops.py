"""Random crops: boxes as a function of a key, and resizing them as batched matrix products.

Boxes as in the official dataset.py: one draw of area and aspect ratio, no retry, clipped to the image.
"""

from dataclasses import dataclass
from functools import lru_cache
from math import log
from typing import Literal

import torch
from torch import Tensor

from byol.errors import ConfigError
from byol.method.draws import Stream, uniforms

Interpolation = Literal["bicubic", "bilinear"]
Pair = tuple[float, float]
Size = tuple[int, int]  # height, width
Stretches = tuple[Tensor, Tensor, Tensor]  # starts, lengths int64 (N,) in pixels; whether mirrored, bool (N,)
TABLE = 2**21  # numbers in half of a table of resampling matrices: for images of up to 38 pixels


@dataclass(frozen=True)
class Crops:
    """A box and a flip for each image, on the host."""

    boxes: Tensor  # int64 (N, 4): top, left, height, width in pixels
    flips: Tensor  # bool (N,): mirrored left to right


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """A host tensor on a device. To a GPU it goes from page-locked memory: from any other the host waits.

    torch keeps the page-locked block until the copy is done, and then for the next one.
    """
    return (x.contiguous().pin_memory() if device.type == "cuda" else x).to(device, non_blocking=True)


def crop_draws(
    seed: int, epochs: Tensor, indices: Tensor, view: int | Tensor, stream: Stream = Stream.CROPS
) -> Tensor:
    """The numbers that `crop_boxes` makes the crops of: float64 (N, 5) in [0, 1)."""
    return uniforms((seed, stream, epochs, indices, view), 5)


def crop_boxes(drawn: Tensor, heights: Tensor, widths: Tensor, area: Pair, ratio: Pair, flip: float) -> Crops:
    """Boxes from uniform numbers, float64 (N, 5): area uniform, aspect ratio log-uniform, place uniform."""
    pixels = (area[0] + (area[1] - area[0]) * drawn[:, 0]) * heights * widths
    aspect = torch.exp(log(ratio[0]) + (log(ratio[1]) - log(ratio[0])) * drawn[:, 1])
    box_widths = torch.minimum((pixels * aspect).sqrt().round().long().clamp_min(1), widths)
    box_heights = torch.minimum((pixels / aspect).sqrt().round().long().clamp_min(1), heights)
    tops = (drawn[:, 2] * (heights - box_heights + 1)).long()
    lefts = (drawn[:, 3] * (widths - box_widths + 1)).long()
    return Crops(torch.stack([tops, lefts, box_heights, box_widths], dim=1), drawn[:, 4] < flip)


def crop_resize(
    images: Tensor, crops: Crops, size: Size, antialias: bool = True, interpolation: Interpolation = "bicubic"
) -> Tensor:
    """Cut, resize, flip: (N, C, H, W) uint8 or float to float32 (N, C, h, w), unclipped, in its own scale.

    Keys' bicubic kernel (a = -0.5) or the bilinear one, half-pixel centres. With `antialias` the kernel
    widens when an image shrinks, as in Pillow; without, it does not, as in the official tf.image.resize. Taps
    outside the box are left out and the weights renormalised, which both do. Two matrix products per image.
    """
    if images.ndim != 4:
        raise ConfigError(f"crop_resize got images of shape {tuple(images.shape)}; expected (N, C, H, W).")
    count, channels, height, width = images.shape

    def matrices(stretches: Stretches, in_size: int, out_size: int) -> Tensor:
        if in_size**3 * out_size > TABLE:
            return resampling_matrices(stretches, in_size, out_size, antialias, interpolation)
        starts, lengths, flips = stretches
        table = every_matrix(in_size, out_size, antialias, interpolation, images.device)
        return table.index_select(0, (flips * in_size + starts) * in_size + lengths - 1)

    tops, lefts, box_heights, box_widths = to_device(crops.boxes, images.device).unbind(1)
    flips = to_device(crops.flips, images.device)
    rows = matrices((tops, box_heights, torch.zeros_like(flips)), height, size[0])
    columns = matrices((lefts, box_widths, flips), width, size[1])
    tall = images.float().reshape(count, channels * height, width)
    # bf16 cannot tell neighbouring bright pixels apart.
    with torch.autocast(images.device.type, enabled=False):
        narrow = torch.bmm(tall, columns.transpose(1, 2))  # (N, C*H, w)
        return torch.matmul(rows[:, None], narrow.view(count, channels, height, size[1]))


@lru_cache(maxsize=64)  # images of many sizes share them: all that are small enough take some 100 MB
def every_matrix(
    size: int, out_size: int, antialias: bool, interpolation: Interpolation, device: torch.device
) -> Tensor:
    """The matrices of all starts and lengths, then all mirrored: row (flip, start, length - 1)."""
    places = torch.arange(2 * size**2, device=device)
    stretches = (places // size % size, places % size + 1, places >= size**2)
    return resampling_matrices(stretches, size, out_size, antialias, interpolation)


def resampling_matrices(
    stretches: Stretches, in_size: int, out_size: int, antialias: bool, interpolation: Interpolation
) -> Tensor:
    """Weights float32 (N, out_size, in_size) that resize [start, start + length) to out_size samples."""
    starts, lengths, flips = stretches
    scale = lengths.float() / out_size  # (N,) input pixels per output pixel
    # (N, out), from the start of the stretch
    centres = (torch.arange(out_size, device=starts.device) + 0.5) * scale[:, None]
    centres = torch.where(flips[:, None], lengths[:, None] - centres, centres)
    shrink = scale.clamp_min(1.0) if antialias else torch.ones_like(scale)
    taps = torch.arange(in_size, device=starts.device) - starts[:, None]  # (N, in) places in the stretch
    distance = (taps[:, None, :] + 0.5 - centres[:, :, None]) / shrink[:, None, None]  # (N, out, in)
    weights = cubic(distance) if interpolation == "bicubic" else distance.abs_().neg_().add_(1).clamp_min_(0)
    weights *= ((taps >= 0) & (taps < lengths[:, None]))[:, None, :]
    return weights.div_(weights.sum(dim=2, keepdim=True))


def cubic(distance: Tensor) -> Tensor:
    """Keys' cubic convolution kernel with a = -0.5, zero beyond 2."""
    d = distance.abs()
    near = (1.5 * d - 2.5) * d * d + 1
    far = ((-0.5 * d + 2.5) * d - 4) * d + 2
    return torch.where(d < 1, near, far).mul_(d < 2)

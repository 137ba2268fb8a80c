"""Random crops: boxes as a function of a key, and resizing them as batched matrix products.

Crop boxes follow the official pipeline (dataset.py): one draw of area and aspect ratio, no retry, clipped to the image.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from math import log
from typing import Literal

import torch
from torch import Tensor

from byol.errors import ConfigError
from byol.method.draws import Stream, uniforms

Interpolation = Literal["bicubic", "bilinear"]
Kernel = Callable[[Tensor], Tensor]
TABLE = 2**21  # numbers that a table of resampling matrices may hold: for images of up to 38 pixels


@dataclass(frozen=True)
class Crops:
    """A box and a flip for each image, on the host."""

    boxes: Tensor  # int64 (N, 4): top, left, height, width in pixels
    flips: Tensor  # bool (N,): mirrored left to right


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """A host tensor on a device. For a GPU it is copied from page-locked memory: from any other the host waits its turn.

    torch keeps the page-locked block until the copy is done, and then for the next one.
    """
    return (x.contiguous().pin_memory() if device.type == "cuda" else x).to(device, non_blocking=True)


def draw_crops(
    seed: int,
    epochs: Tensor,  # int64 (N,)
    indices: Tensor,  # int64 (N,)
    view: int | Tensor,  # or int64 (N,)
    heights: Tensor,  # int64 (N,)
    widths: Tensor,  # int64 (N,)
    *,
    area: tuple[float, float],
    ratio: tuple[float, float],
    flip: float,
) -> Crops:
    """The crop of each image for a view: a function of (seed, epoch, index, view) and the image's size alone."""
    return crop_boxes(
        crop_draws(seed, epochs, indices, view), heights, widths, area=area, ratio=ratio, flip=flip
    )


def crop_draws(seed: int, epochs: Tensor, indices: Tensor, view: int | Tensor) -> Tensor:
    """The numbers that `crop_boxes` makes the crops of: float64 (N, 5) in [0, 1)."""
    return uniforms((seed, Stream.CROPS, epochs, indices, view), 5)


def crop_boxes(
    drawn: Tensor,  # float64 (N, 5) in [0, 1)
    heights: Tensor,
    widths: Tensor,
    *,
    area: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    flip: float = 0.5,
) -> Crops:
    """Turn uniform numbers into boxes: area uniform in a share of the image, aspect ratio log-uniform, place uniform."""
    pixels = (area[0] + (area[1] - area[0]) * drawn[:, 0]) * heights * widths
    aspect = torch.exp(log(ratio[0]) + (log(ratio[1]) - log(ratio[0])) * drawn[:, 1])
    box_widths = torch.minimum((pixels * aspect).sqrt().round().long().clamp_min(1), widths)
    box_heights = torch.minimum((pixels / aspect).sqrt().round().long().clamp_min(1), heights)
    tops = (drawn[:, 2] * (heights - box_heights + 1)).long()
    lefts = (drawn[:, 3] * (widths - box_widths + 1)).long()
    return Crops(torch.stack([tops, lefts, box_heights, box_widths], dim=1), drawn[:, 4] < flip)


def crop_resize(
    images: Tensor,
    crops: Crops,
    size: tuple[int, int],
    antialias: bool = True,
    interpolation: Interpolation = "bicubic",
) -> Tensor:
    """Cut, resize and flip each image: (N, C, H, W) uint8 or float to float32 (N, C, h, w), unclipped, in its own scale.

    Keys' bicubic kernel (a = -0.5) or the bilinear one, half-pixel centres. With `antialias` the kernel widens when an
    image shrinks, as in Pillow; without, it does not, as in the official tf.image.resize. Taps outside the box are left
    out and the weights renormalised, which both do. Two matrix products per image, rows first.
    """
    if images.ndim != 4:
        raise ConfigError(f"crop_resize got images of shape {tuple(images.shape)}; expected (N, C, H, W).")
    height, width = images.shape[2:]
    tops, lefts, box_heights, box_widths = to_device(crops.boxes, images.device).unbind(1)
    flips = to_device(crops.flips, images.device)
    kernel = cubic if interpolation == "bicubic" else linear
    rows = resampling_matrices(tops, box_heights, height, size[0], antialias, None, kernel)
    columns = resampling_matrices(lefts, box_widths, width, size[1], antialias, flips, kernel)
    count, channels = images.shape[:2]
    tall = images.float().reshape(count, channels * height, width)
    with torch.autocast(
        images.device.type, enabled=False
    ):  # bf16 cannot tell neighbouring bright pixels apart
        narrow = torch.bmm(tall, columns.transpose(1, 2))  # (N, C*H, w)
        return torch.matmul(rows[:, None], narrow.view(count, channels, height, size[1]))


def resampling_matrices(
    starts: Tensor,
    lengths: Tensor,
    in_size: int,
    out_size: int,
    antialias: bool,
    flips: Tensor | None,
    kernel: Kernel,
) -> Tensor:
    """As `resampling_matrix`, for small images out of a table of all matrices there are."""
    if in_size**3 * out_size > TABLE:
        return resampling_matrix(starts, lengths, in_size, out_size, antialias, flips, kernel)
    place = starts * in_size + lengths - 1
    if flips is None:
        return every_matrix(in_size, out_size, antialias, False, kernel, starts.device).index_select(0, place)
    place += flips * in_size**2
    return every_matrix(in_size, out_size, antialias, True, kernel, starts.device).index_select(0, place)


@lru_cache(maxsize=4)  # rows and columns, of two sizes
def every_matrix(
    in_size: int, out_size: int, antialias: bool, flipped: bool, kernel: Kernel, device: torch.device
) -> Tensor:
    """The matrices of all starts and lengths, then all mirrored if `flipped`: row (flip, start, length - 1)."""
    stretches = torch.arange(in_size**2, device=device).repeat(1 + flipped)
    flips = torch.arange(len(stretches), device=device) >= in_size**2
    starts, lengths = stretches // in_size, stretches % in_size + 1
    return resampling_matrix(
        starts, lengths, in_size, out_size, antialias, flips if flipped else None, kernel
    )


def resampling_matrix(
    starts: Tensor,
    lengths: Tensor,
    in_size: int,
    out_size: int,
    antialias: bool,
    flips: Tensor | None = None,
    kernel: Kernel | None = None,  # `cubic` when None
) -> Tensor:
    """Weights float32 (N, out_size, in_size) that resize the stretch [start, start + length) to out_size samples."""
    scale = lengths.float() / out_size  # (N,) input pixels per output pixel
    device = starts.device
    centres = (torch.arange(out_size, device=device) + 0.5) * scale[
        :, None
    ]  # (N, out) from the start of the stretch
    if flips is not None:
        centres = torch.where(flips[:, None], lengths[:, None] - centres, centres)
    stretch = scale.clamp_min(1.0) if antialias else torch.ones_like(scale)
    taps = (
        torch.arange(in_size, device=device) - starts[:, None]
    )  # (N, in) position of each input pixel in the stretch
    distance = (taps[:, None, :] + 0.5 - centres[:, :, None]) / stretch[:, None, None]  # (N, out, in)
    weights = (kernel or cubic)(distance)
    weights *= ((taps >= 0) & (taps < lengths[:, None]))[:, None, :]
    return weights.div_(weights.sum(dim=2, keepdim=True))


def cubic(distance: Tensor) -> Tensor:
    """Keys' cubic convolution kernel with a = -0.5, zero beyond 2."""
    d = distance.abs()
    near = (1.5 * d - 2.5) * d * d + 1
    far = ((-0.5 * d + 2.5) * d - 4) * d + 2
    return torch.where(d < 1, near, far).mul_(d < 2)


def linear(distance: Tensor) -> Tensor:
    """The triangle of bilinear interpolation, zero beyond 1."""
    return distance.abs().neg_().add_(1).clamp_min_(0)

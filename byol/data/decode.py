"""What a source holds, made pixels: the one place that meets pictures as they are found in the wild."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError, features
from torch import Tensor

from byol.data.levels import FULL
from byol.errors import DataError

MAX_PIXELS = 64_000_000
PLUGINS = {"HEIF": "pillow_heif", "JXL": "pillow_jxl"}  # formats that Pillow reads with a module beside it
ROOM = 1e-3  # by which a float may miss [0, 1]: interpolation overshoots a little
Array = np.ndarray[Any, Any]
Pixels = np.ndarray[Any, np.dtype[np.uint8]]

_ORIENTATION, _SAMPLE_FORMAT = 0x0112, 339  # tags of EXIF and TIFF
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TIFF = "it is a TIFF that Pillow does not read, such as 64-bit floats; save 16-bit numbers or 32-bit floats"
_JXL = "it is JPEG XL; to read it: pip install pillow-jxl-plugin"
_BEGINNINGS = {
    b"version https://git-lfs": "it is a git-lfs pointer; fetch the picture itself with `git lfs pull`",
    b"<": "it is a web page or XML, not a picture",
    **dict.fromkeys((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), _TIFF),
    **dict.fromkeys((b"\xff\x0a", b"\0\0\0\x0cJXL "), _JXL),
    **{
        bytes((0, 0, 0, n)) + b"ftyphei": "it is HEIC; to read it: pip install pillow-heif"
        for n in range(16, 64, 4)
    },
}
_LOWER = {"RGB;16B": "RGB;16L", "RGB;16L": "RGB;16B"}  # how Pillow reads the other byte of each sample
_LOWER["RGB;16N"] = "RGB;16B" if sys.byteorder == "little" else "RGB;16L"


class BadImage(DataError):
    """One picture that cannot be read; the message says why."""


@cache
def formats() -> tuple[str, ...]:
    """The formats that are read here. Pillow's own list is longer: it can start Ghostscript."""
    found = ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", *(["AVIF"] if features.check("avif") else [])]
    for name, module in PLUGINS.items():
        if find_spec(module):
            getattr(import_module(module), "register_heif_opener", lambda: None)()
            found.append(name)
    return tuple(found)


@dataclass(frozen=True)
class Reading:
    """How the images of a set are read: all of them alike."""

    channels: int = 3  # of pictures 3 (colour) or 1 (gray), of arrays any number
    max_pixels: int = MAX_PIXELS
    levels: tuple[float, float] | None = None  # samples of more than 8 bits that become black and white
    chosen: bool = False  # whether somebody chose the levels; floats go from 0 to 1 unless somebody did

    def picture(self, raw: Any) -> Image.Image | Pixels:
        """Encoded bytes or a PIL image as an upright PIL image of mode RGB or L; an array as uint8 (H, W, C).

        The content decides the format, never a name. The pixel limit is checked on the header, before
        anything is allocated. The first frame of several counts; transparency is laid on white. Raises
        BadImage.
        """
        if isinstance(raw, Tensor | np.ndarray):
            return self._of_array(raw)
        if self.channels not in (1, 3):
            raise BadImage(f"pictures have 3 channels (colour) or 1 (gray), and {self.channels} are wanted")
        with _told(raw):
            picture = _opened(raw)
            _check(*picture.size, self.max_pixels)
            picture.load()
            turn = _UPRIGHT.get(_orientation(picture))
            samples = None if self.levels in (None, FULL) else deep_colour(raw)
            if samples is None and picture.mode[0] in "IF":
                samples = gray_samples(picture)
            if samples is not None:
                picture = Image.fromarray(self.eight_bits(samples))
            elif picture.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in picture.info:
                colours = picture.convert("RGBA")
                picture = Image.new("RGB", colours.size, "white")
                picture.paste(colours, mask=colours.getchannel("A"))
            wanted = "L" if self.channels == 1 else "RGB"
            picture = picture if picture.mode == wanted else picture.convert(wanted)
            return picture if turn is None else picture.transpose(turn)

    def size(self, raw: Any) -> tuple[int, int]:
        """Height and width of the upright picture; encoded bytes are not decoded. Raises BadImage."""
        if isinstance(raw, Tensor | np.ndarray):
            axis = channel_axis(raw, self.channels)
            height, width = (side for place, side in enumerate(raw.shape) if place != axis)
            return height, width
        with _told(raw):
            picture = _opened(raw)
            # Pillow itself turns TIFF, and tells the turned size.
            turned = picture.format != "TIFF" and _orientation(picture) in (5, 6, 7, 8)
        return (picture.width, picture.height) if turned else (picture.height, picture.width)

    def deep_samples(self, raw: Any) -> Array | None:
        """The samples of an image of more than 8 bits, which need a black and a white. Raises BadImage."""
        if isinstance(raw, Tensor | np.ndarray):
            samples = to_numpy(raw)
            return samples if samples.dtype.kind in "iuf" and samples.dtype != np.uint8 else None
        with _told(raw):
            picture = _opened(raw)
            _check(*picture.size, self.max_pixels)
            return gray_samples(picture) if picture.mode[0] in "IF" else deep_colour(raw)

    def eight_bits(self, samples: Array) -> Pixels:
        """Samples of any kind on the scale of uint8. Raises BadImage."""
        kind = samples.dtype.kind
        if samples.dtype == np.uint8:
            return samples
        if kind == "b":
            return samples.astype(np.uint8) * np.uint8(255)
        if kind not in "iuf":
            raise BadImage(f"its samples are {samples.dtype}; expected whole numbers, or floats from 0 to 1")
        black, white = self.levels or FULL
        if kind == "f":
            if not np.isfinite(samples).all():
                raise BadImage("it has samples that are not finite")
            if not self.chosen:
                black, white, low, high = 0, 1, samples.min(), samples.max()
                if low < -ROOM or high > 1 + ROOM:
                    raise BadImage(
                        f"its samples go from {low:.4g} to {high:.4g}; expected floats from 0 to 1, or what "
                        "is white, as white= or --data.white"
                    )
        exact: Any = np.float32 if samples.dtype.itemsize <= (4 if kind == "f" else 2) else np.float64
        scaled: Array = (samples.astype(exact) - exact(black)) * exact(255 / (white - black)) + exact(0.5)
        eight: Pixels = scaled.clip(0, 255).astype(np.uint8)
        return eight

    def _of_array(self, raw: Array | Tensor) -> Pixels:
        if raw.ndim not in (2, 3) or 0 in raw.shape:
            raise BadImage(f"it has the shape {tuple(raw.shape)}; expected (H, W), (H, W, C) or (C, H, W)")
        height, width = self.size(raw)
        _check(width, height, self.max_pixels)
        axis, samples = channel_axis(raw, self.channels), to_numpy(raw)
        pixels = self.eight_bits(samples[:, :, None] if axis is None else np.moveaxis(samples, axis, 2))
        own = pixels.shape[2]
        if own == self.channels:
            return pixels
        if own == 1 and self.channels == 3:
            return pixels.repeat(3, axis=2)
        if own == 3 and self.channels == 1:
            return np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).convert("L"))[:, :, None]
        raise BadImage(f"it has {own} channels where {self.channels} are wanted; ask for {own} channels")


def decode(data: bytes, *, channels: int = 3, max_pixels: int = MAX_PIXELS) -> Pixels:
    """The first frame of an encoded picture, upright, as uint8 (H, W, channels). Raises BadImage."""
    pixels: Pixels = np.asarray(Reading(channels, max_pixels).picture(data))
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def channel_axis(image: Array | Tensor, channels: int | None) -> int | None:
    """Which axis of an image holds the channels: 0 or 2, or None for (H, W).

    It is the axis that has the requested channels; else the one of length 1, 3 or 4; else the one beside a
    square; else the shortest. Where both do, or none, the library's own order counts: tensors (C, H, W),
    arrays (H, W, C).
    """
    if image.ndim == 2:
        return None
    first, middle, last = image.shape
    for in_front, behind in (
        (first == channels, last == channels),
        (first in (1, 3, 4), last in (1, 3, 4)),
        (middle == last, first == middle),
        (first == min(image.shape), last == min(image.shape)),
    ):
        if in_front != behind:
            return 0 if in_front else 2
        if in_front and behind:
            break
    return 0 if isinstance(image, Tensor) else 2


def channels_of(image: Any) -> int:
    """The channels of an array or tensor; 3 for any other picture."""
    if not isinstance(image, Tensor | np.ndarray) or image.ndim not in (2, 3):
        return 3
    axis = channel_axis(image, None)
    return 1 if axis is None else int(image.shape[axis])


def to_numpy(image: Any) -> Array:
    """An array, PIL image or tensor of any device as an array; bfloat16, which numpy has not, as float32."""
    if isinstance(image, Tensor):
        image = image.detach().cpu()
        image = (image.float() if image.is_floating_point() else image).numpy()
    return np.asarray(image)


def gray_samples(picture: Image.Image) -> Array:
    """The samples of a gray picture of more than 8 bits, as they were saved."""
    samples: Array = np.asarray(picture)
    tags = getattr(picture, "tag_v2", {})
    if picture.mode == "I" and picture.format == "TIFF" and tags.get(_SAMPLE_FORMAT, (1,))[0] == 1:
        return samples.view(np.uint32)  # Pillow takes them for signed ones
    return samples


def deep_colour(data: Any) -> Array | None:
    """The samples of an encoded picture of three channels of 16 bits, uint16 (H, W, 3); None of any other.

    Pillow gives the upper byte of each sample, and the lower one when it is told the other order of bytes.
    """
    if not isinstance(data, bytes):
        return None
    upper: Any = _opened(data)
    lower: Any = _opened(data)
    lower.tile = []
    for tile in upper.tile:
        mode, *more = tile.args if isinstance(tile.args, tuple) else (tile.args,)
        if upper.mode != "RGB" or mode not in _LOWER:
            return None
        lower.tile.append(tile._replace(args=(_LOWER[mode], *more) if more else _LOWER[mode]))
    return np.asarray(upper).astype(np.uint16) * 256 + np.asarray(lower) if upper.tile else None


@contextmanager
def _told(data: Any) -> Iterator[None]:
    """What decoders raise over damaged bytes, which is nearly every exception there is, becomes BadImage.

    Of their warnings, of large pictures and odd metadata, what matters ends as BadImage too.
    """
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    except BadImage:
        raise
    except Exception as failure:
        raise BadImage(_reason(data, failure)) from failure


def _check(width: int, height: int, most: int) -> None:
    if width * height > most:
        raise BadImage(f"{width}x{height} pixels are more than the limit of {most:,}")


def _opened(raw: Any) -> Image.Image:
    if isinstance(raw, Image.Image):
        return raw
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # our own limit speaks, lower or higher
    try:
        return Image.open(BytesIO(raw), formats=formats())
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _orientation(picture: Image.Image) -> int:
    try:
        return int(picture.getexif().get(_ORIENTATION, 1))
    except Exception:  # damaged metadata of a sound picture: taken as upright
        return 1


def _reason(data: Any, failure: Exception) -> str:
    if data == b"":
        return "the file is empty"
    if isinstance(failure, UnidentifiedImageError):
        known = (reason for beginning, reason in _BEGINNINGS.items() if data.lstrip().startswith(beginning))
        return next(known, f"it is none of {', '.join(formats())}")
    return str(failure) or type(failure).__name__

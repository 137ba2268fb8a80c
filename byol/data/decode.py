"""Bytes to pixels: the one place that meets pictures as they are found in the wild."""

import warnings
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from byol.errors import DataError

MAX_PIXELS = 64_000_000
# JPEG includes MPO, a JPEG with a second frame, as phones write. Pillow's own list is longer: it can start Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
Pixels = np.ndarray[Any, np.dtype[np.uint8]]

_ORIENTATION = 0x0112  # the EXIF tag
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class BadImage(DataError):
    """One picture that cannot be read; the message says why."""


def decode(data: bytes, *, channels: int = 3, max_pixels: int = MAX_PIXELS) -> Pixels:
    """The first frame of an encoded picture, upright: uint8 (H, W, C), C 3 for colour or 1 for gray. Raises BadImage."""
    return to_array(open_picture(data, channels=channels, max_pixels=max_pixels))


def open_picture(data: bytes, *, channels: int = 3, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The first frame of an encoded picture, upright and loaded, in mode RGB (3 channels) or L (1 channel).

    The content decides the format, never a name. The pixel limit is checked on the header, before anything is
    allocated. Transparency is laid on white; 16-bit samples are scaled to 8 bits. Raises BadImage.
    """
    try:
        with _quiet():
            picture = _opened(data)
    except Exception as failure:
        raise BadImage(_reason(data, failure)) from failure
    return simplified(picture, channels, max_pixels)


def header_size(data: bytes) -> tuple[int, int]:
    """Height and width of the upright picture, from its header alone. Raises BadImage."""
    try:
        with _quiet():
            picture = _opened(data)
            # Pillow itself turns TIFF, and tells the turned size.
            turned = picture.format != "TIFF" and _orientation(picture) in (5, 6, 7, 8)
    except Exception as failure:
        raise BadImage(_reason(data, failure)) from failure
    return (picture.width, picture.height) if turned else (picture.height, picture.width)


def simplified(picture: Image.Image, channels: int = 3, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Any Pillow image loaded and upright, as 8-bit RGB (3 channels) or L (1 channel). Raises BadImage."""
    if picture.width * picture.height > max_pixels:
        raise BadImage(f"{picture.width}x{picture.height} pixels are more than the limit of {max_pixels:,}")
    try:
        with _quiet():
            picture.load()
            return _simplified(picture, channels)
    except BadImage:
        raise
    except Exception as failure:  # decoders answer damaged bytes with nearly every exception there is
        raise BadImage(str(failure) or type(failure).__name__) from failure


def _simplified(picture: Image.Image, channels: int) -> Image.Image:
    turn = _UPRIGHT.get(_orientation(picture))
    if picture.mode.startswith("I") or picture.mode == "F":
        picture = Image.fromarray(_eight_bits(np.asarray(picture), picture.mode))
    elif picture.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in picture.info:
        colours = picture.convert("RGBA")
        picture = Image.new("RGB", colours.size, "white")
        picture.paste(colours, mask=colours.getchannel("A"))
    wanted = "L" if channels == 1 else "RGB"
    if picture.mode != wanted:
        picture = picture.convert(wanted)
    return picture if turn is None else picture.transpose(turn)


def to_array(picture: Image.Image) -> Pixels:
    """A Pillow image of mode RGB or L as uint8 (H, W, C)."""
    pixels = np.asarray(picture)
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def _opened(data: bytes) -> Image.Image:
    limit, Image.MAX_IMAGE_PIXELS = (
        Image.MAX_IMAGE_PIXELS,
        None,
    )  # our own limit speaks, lower or higher than Pillow's
    try:
        return Image.open(BytesIO(data), formats=FORMATS)
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _quiet() -> "warnings.catch_warnings[None]":
    """Pillow warns of large pictures and odd metadata; what matters of that ends as BadImage."""
    return warnings.catch_warnings(action="ignore")


def _orientation(picture: Image.Image) -> int:
    try:
        return int(picture.getexif().get(_ORIENTATION, 1))
    except Exception:  # damaged metadata of a sound picture: taken as upright
        return 1


def _eight_bits(samples: np.ndarray[Any, Any], mode: str) -> Pixels:
    """Gray samples of 16 or 32 bits, or floats, on the scale of 8 bits.

    16 bits have a fixed white. 32-bit integers and floats do not: within [0, 65535], or [0, 1], that is taken as the
    scale; otherwise the picture's own smallest and largest value become black and white.
    """
    if not np.isfinite(samples).all():
        raise BadImage("it has samples that are not finite")
    low, high = float(samples.min()), float(samples.max())
    if mode.startswith("I;16") or (mode == "I" and low >= 0 and high <= 65535):
        return ((samples.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if mode == "F" and low >= 0 and high <= 1:
        return (samples * 255 + 0.5).astype(np.uint8)
    return ((samples.astype(np.float64) - low) * (255 / max(high - low, 1e-12)) + 0.5).astype(np.uint8)


def _reason(data: bytes, failure: Exception) -> str:
    if not data:
        return "the file is empty"
    if data.startswith(b"version https://git-lfs"):
        return "it is a git-lfs pointer; fetch the picture itself with `git lfs pull`"
    if data.lstrip()[:1] == b"<":
        return "it is a web page or XML, not a picture"
    if isinstance(failure, UnidentifiedImageError):
        return f"it is none of {', '.join(FORMATS)}"
    return str(failure) or type(failure).__name__

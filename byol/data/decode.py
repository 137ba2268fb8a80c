"""What a source holds becomes pixels: the one place that meets pictures as they are in the wild."""

import logging
import math
import os
import re
import struct
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from io import BytesIO
from itertools import islice
from typing import Any

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError, features
from torch import Tensor

from byol.errors import DataError

MAX_PIXELS = 62_000_000  # the largest full-frame cameras have 61 million; turned upright they take 500 MB
# Half as many for what takes twice the memory to decode: transparency, many bits, progressive JPEG, WebP; a
# quarter for colours of 16 bits.
LIGHT_FORMATS = {"JPEG", "MPO", "PNG", "BMP", "TIFF", "GIF", None}  # None: it is decoded already
LIGHT_MODES = {"1", "L", "P", "RGB", "CMYK"}
FULL = (0, 65535)  # black and white of 16 bits
PLUGINS = {"HEIF": "pillow_heif", "JXL": "pillow_jxl"}  # formats that Pillow reads with a module beside it
STRIP = 512  # rows of a large picture that are copied at once
SCANS = 32  # of a JPEG; programs write up to 18, and each is a pass over the whole picture
# Parts that a picture is read in, beside one for every 128 bytes: each takes 100 bytes and a microsecond.
MOST_PARTS = 2**16
MOST_STRIPS = 2**18  # or tiles, of a TIFF: as many of 16 x 16 pixels as MAX_PIXELS are, and one for every row
MOST_EXIF = 100  # of the parts of a JPEG; Pillow copies all before for each that follows
SPARE = 32  # bytes; cameras write a few more than a JPEG's pixels need, damage leaves more of them
ROOM = 1e-3  # by which a float may miss [0, 1]: interpolation overshoots a little
Array = np.ndarray[Any, Any]
Pixels = np.ndarray[Any, np.dtype[np.uint8]]
Levels = tuple[float, float]  # the samples that become black and white

_ORIENTATION, _SAMPLE_FORMAT = 0x0112, 339  # tags of EXIF and TIFF
_STRIPS = (273, 324)  # tags of a TIFF that hold where each of them begins
_TURN = Image.Transpose
_UPRIGHT = {2: _TURN.FLIP_LEFT_RIGHT, 3: _TURN.ROTATE_180, 4: _TURN.FLIP_TOP_BOTTOM, 5: _TURN.TRANSPOSE}
_UPRIGHT |= {6: _TURN.ROTATE_270, 7: _TURN.TRANSVERSE, 8: _TURN.ROTATE_90}
_BEGINNINGS = {
    rb"version https://git-lfs": "it is a git-lfs pointer; fetch the picture itself with `git lfs pull`",
    rb"<": "it is a web page or XML, not a picture",
    rb"II[*+]\0|MM\0[*+]": "it is a TIFF that Pillow does not read, such as 64-bit floats; save 16-bit "
    "numbers or 32-bit floats",
    rb"\xff\x0a|\0\0\0\x0cJXL ": "it is JPEG XL; to read it: pip install pillow-jxl-plugin",
    rb"\0\0\0.ftyphei": "it is HEIC; to read it: pip install pillow-heif",
}
_MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")  # of a JPEG, but for those within its compressed data
_SEQUENTIAL, _SCAN = (0xC0, 0xC1), 0xDA  # frames whose pixels come one after another; the start of a scan
# How Pillow reads the other byte of each sample.
_LOWER = {
    f"{mode};16{order}": f"{mode};16{other}" for mode in ("RGB", "RGBA") for order, other in ("BL", "LB")
}
_LOWER |= {f"{mode};16N": _LOWER[f"{mode};16{sys.byteorder[0].upper()}"] for mode in ("RGB", "RGBA")}
_GRAY_AND_ALPHA = "LA;16B"  # two samples of two bytes, which Pillow also reads as four of one
logger = logging.getLogger("byol")


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
    min_side: int = 1  # of the shorter side, pixels
    truncated: bool = False  # whether a picture that is cut off counts, with gray where it is missing
    levels: Levels | None = None  # of samples of more than 8 bits
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
            raise BadImage(
                f"pictures have 3 channels (colour) or 1 (gray), and {self.channels} were requested"
            )
        with _decoding(raw, self.truncated):
            picture = _opened(raw, self.max_pixels)
            self._check_side(*picture.size)
            if picture.format in ("JPEG", "MPO") and isinstance(raw, bytes):
                check_scans(raw)
                if not self.truncated:
                    load_jpeg(picture, raw)
            picture.load()
            turn = _UPRIGHT.get(_orientation(picture))
            gray = picture.mode[0] in "IF"
            samples = deep_samples(picture, raw) if gray or self.levels not in (None, FULL) else None
            if samples is not None:
                picture = Image.fromarray(self.eight_bits(without_alpha(samples)))
                if samples.shape[2:] == (4,):
                    picture.putalpha(Image.fromarray(self.eight_bits_of_alpha(samples[..., 3])))
            if picture.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in picture.info:
                colours = picture.convert("RGBA")
                picture = Image.new("RGB", colours.size, "white")
                picture.paste(colours, mask=colours.getchannel("A"))
            mode = "L" if self.channels == 1 else "RGB"
            picture = picture if picture.mode == mode else picture.convert(mode)
            return picture if turn is None else picture.transpose(turn)

    def size(self, raw: Any) -> tuple[int, int]:
        """Height and width of the upright picture; encoded bytes are not decoded. Raises BadImage."""
        if isinstance(raw, Tensor | np.ndarray):
            axis = channel_axis(raw, self.channels)
            height, width = (side for place, side in enumerate(raw.shape) if place != axis)
            return height, width
        with _decoding(raw):
            picture = _opened(raw)
            # Pillow itself turns TIFF, and tells the turned size.
            turned = picture.format != "TIFF" and _orientation(picture) in (5, 6, 7, 8)
        return (picture.width, picture.height) if turned else (picture.height, picture.width)

    def extremes(self, raw: Any) -> Array | None:
        """The smallest and largest sample of an image of more than 8 bits, else None. Raises BadImage.

        Of whole numbers one in 10,000 is left out at each end: a sensor has hot and dead pixels.
        """
        samples: Array | None = None
        if not isinstance(raw, Tensor | np.ndarray):
            with _decoding(raw, self.truncated):
                samples = deep_samples(_opened(raw, self.max_pixels), raw)
            samples = None if samples is None else without_alpha(samples)
        elif (array := to_numpy(raw)).dtype.kind in "iuf" and array.dtype != np.uint8:
            samples = array
        if samples is None:
            return None
        if samples.dtype.kind == "f":
            return np.array([samples.min(), samples.max()])
        flat = samples.reshape(-1)
        if flat.size > 200_000:
            flat = flat[np.random.default_rng(0).integers(flat.size, size=200_000)]
        left_out = len(flat) // 10_000
        found: Array = np.sort(flat)[[left_out, -1 - left_out]]
        return found

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
                    found = f"its samples go from {low:.4g} to {high:.4g}"
                    raise BadImage(f"{found}; expected floats from 0 to 1, or white= or --data.white")
        exact: Any = np.float32 if samples.dtype.itemsize <= (4 if kind == "f" else 2) else np.float64
        scaled: Array = (samples.astype(exact) - exact(black)) * exact(255 / (white - black)) + exact(0.5)
        eight: Pixels = scaled.clip(0, 255).astype(np.uint8)
        return eight

    def eight_bits_of_alpha(self, samples: Array) -> Pixels:
        """Alpha on the scale of uint8. Opaque is white where nothing is above it, else the end of 16 bits."""
        _, white = self.levels or FULL
        opaque = white if 0 < samples.max() <= white else FULL[1]
        return replace(self, levels=(0, opaque)).eight_bits(samples)

    def _check_side(self, width: int, height: int) -> None:
        if min(width, height) < self.min_side:
            raise BadImage(f"{width}x{height} pixels have a side below the limit of {self.min_side}")

    def _of_array(self, raw: Array | Tensor) -> Pixels:
        if raw.ndim not in (2, 3) or 0 in raw.shape:
            raise BadImage(f"it has the shape {tuple(raw.shape)}; expected (H, W), (H, W, C) or (C, H, W)")
        axis, samples = channel_axis(raw, self.channels), to_numpy(raw)
        samples = samples[:, :, None] if axis is None else np.moveaxis(samples, axis, 2)
        height, width, own = samples.shape
        _check(width, height, self.max_pixels)
        self._check_side(width, height)
        pixels = self.eight_bits(samples)
        if own == self.channels:
            return pixels
        if own == 1 and self.channels == 3:
            return pixels.repeat(3, axis=2)
        if own == 3 and self.channels == 1:
            return np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).convert("L"))[:, :, None]
        raise BadImage(f"it has {own} channels, and {self.channels} were requested")


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
    """An array, PIL image or tensor of any device as an array; bfloat16, which numpy lacks, as float32."""
    if isinstance(image, Tensor):
        image = image.detach().cpu()
        image = (image.float() if image.is_floating_point() else image).numpy()
    return np.asarray(image)


def deep_samples(picture: Image.Image, raw: Any) -> Array | None:
    """The samples of a picture of more than 8 bits as they were saved, (H, W) or (H, W, 3 or 4); else None.

    Of 16 bits a colour Pillow reads the upper byte only, and the lower one when told the other byte order.
    """
    if picture.mode[0] in "IF":
        samples: Array = np.asarray(picture)
        unsigned = getattr(picture, "tag_v2", {}).get(_SAMPLE_FORMAT, (1,))[0] == 1
        # Pillow takes unsigned numbers in a TIFF for signed ones.
        return (
            samples.view(np.uint32)
            if picture.mode == "I" and picture.format == "TIFF" and unsigned
            else samples
        )
    if not isinstance(raw, bytes):
        return None
    upper: Any = _opened(raw)
    lower: Any = _opened(raw)
    lower.tile = []
    for tile in upper.tile:
        mode, *more = _raw_mode(tile)
        if (upper.mode, mode) == ("RGBA", _GRAY_AND_ALPHA):
            upper.tile = [tile._replace(args=("RGBA", *more) if more else "RGBA")]
            pairs = np.asarray(upper).view(">u2").astype(np.uint16)
            return pairs[..., [0, 0, 0, 1]]
        if mode not in _LOWER or upper.mode != mode.partition(";")[0]:
            return None
        lower.tile.append(tile._replace(args=(_LOWER[mode], *more) if more else _LOWER[mode]))
    return np.asarray(upper).astype(np.uint16) * 256 + np.asarray(lower) if upper.tile else None


def without_alpha(samples: Array) -> Array:
    """The gray or the colours of such samples."""
    return samples if samples.ndim == 2 else samples[..., :3]


def levels_between(low: int, high: int) -> tuple[int, int]:
    """Black and white for whole numbers that go from `low` to `high`: the range of as few bits as hold them.

    12 bits in a file of 16 bits have their white at 4,095. Numbers that would share few of the 256 gray
    levels so, such as temperatures in hundredths of a kelvin, get a black near their smallest.
    """
    black = -(2 ** (-low - 1).bit_length()) if low < 0 else 0
    white = max(2 ** max(high, 0).bit_length() - 1, 255)
    if high - low < (white - black) / 4:
        step = max(2 ** (high - low).bit_length() // 4, 64)
        black, white = low // step * step, -(-high // step) * step
    return black, max(white, black + 255)


def levels_of(where: str, found: list[Array], black: float | None, white: float | None) -> Levels | None:
    """Black and white of images with such extremes, as requested or suggested; None of images of 8 bits."""
    whole = [ends for ends in found if ends.dtype.kind in "iu"]
    low, high = [f([e[place] for e in whole or found], default=place) for place, f in enumerate((min, max))]
    suggested = levels_between(int(low), int(high)) if whole else (0, 1)
    seen = f"The samples of {where} go from {low:,} to {high:,}"
    if black is None and white is None:
        if whole and suggested != FULL:
            logger.warning(
                f"{seen}: {suggested[0]:,} is read as black, {suggested[1]:,} as white. Choose "
                "others by black= and white=, or --data.black and --data.white."
            )
        return suggested if whole else None
    levels = min(suggested[0], 0) if black is None else black, suggested[1] if white is None else white
    if not -math.inf < levels[0] < levels[1] < math.inf:
        raise DataError("black is {:g} and white {:g}; expected a larger, finite white.".format(*levels))
    if not found:
        logger.warning(f"{where} holds images of 8 bits, where black and white change nothing.")
    elif 16 * (high - low) < levels[1] - levels[0]:
        logger.warning(f"{seen}: few gray levels are left of them between {levels[0]:g} and {levels[1]:g}.")
    return levels


def header(raw: Any) -> tuple[str, str]:
    """The format and Pillow's mode of a picture, of which only the header is read; of an array its dtype.

    Raises BadImage.
    """
    if isinstance(raw, Tensor | np.ndarray):
        return "array", str(raw.dtype).removeprefix("torch.")
    with _decoding(raw):
        picture = _opened(raw)
    return picture.format or "decoded", picture.mode


def check_scans(raw: bytes) -> None:
    """Raise BadImage for a JPEG of absurdly many scans."""
    if raw.count(b"\xff\xda") <= SCANS:
        return
    kinds = [kind for kind, *_ in islice(segments(raw), MOST_PARTS)]
    if kinds.count(_SCAN) > SCANS or len(kinds) == MOST_PARTS:
        raise BadImage(f"it has more than {SCANS} scans, each a pass over the whole picture")


def check_strips(raw: bytes) -> None:
    """Raise BadImage for a TIFF of absurdly many strips or tiles: each takes 8 bytes there, 250 in memory."""
    order, large = {b"II": "<", b"MM": ">"}.get(raw[:2]), 43 in raw[2:4]
    if order is None or not (large or 42 in raw[2:4]):
        return
    place = int(struct.unpack_from(order + "LQ"[large], raw, 8 if large else 4)[0])
    count = int(struct.unpack_from(order + "HQ"[large], raw, place)[0])
    entry, size = order + ("HHQ" if large else "HHL"), 20 if large else 12
    for number in range(min(count, MOST_PARTS)):
        tag, _, values = struct.unpack_from(entry, raw, place + (8 if large else 2) + number * size)
        if tag in _STRIPS and values > MOST_STRIPS:
            raise BadImage(f"it has {values:,} strips or tiles; at most {MOST_STRIPS:,} are read")


def load_jpeg(picture: Any, raw: bytes) -> None:
    """Decode a JPEG. Raises BadImage for one whose data are damaged.

    The decoder makes gray of what is missing and drops what is left over, without a word. So a picture of one
    scan is given to it without what follows its data, and with the last of them only when they are needed.
    """
    colours, last = 0, None
    for kind, begin, end in segments(raw):
        if kind in _SEQUENTIAL:
            colours = raw[begin + 7]
        if kind == _SCAN:
            stop = raw.find(b"\xff\xd9", end)  # without this, Pillow itself says that the end is missing
            if stop > 0 and colours and raw[begin + 2] == colours:  # all in this scan
                picture.fp = last = _Paused(raw[:stop] + bytes(8))  # the decoder looks so far ahead
                last.pause = end + max(0, len(raw[end:stop].rstrip(b"\0\xff")) - SPARE)
            break
    picture.load()
    if last is not None and last.tell() <= last.pause:
        raise BadImage("it is damaged: its data go on behind its last pixel, or stop before it")


def segments(raw: bytes) -> Iterator[tuple[int, int, int]]:
    """The kind of each segment of a JPEG, where it begins and ends; of several pictures the first's."""
    end = 2
    while (marker := _MARKER.search(raw, end)) and marker[1] != b"\xd9":
        begin = marker.end()
        end = begin + int.from_bytes(raw[begin : begin + 2])
        yield marker[1][0], begin, end


class _InParts(BytesIO):
    """A picture's bytes. Raises BadImage for one of more parts than any program writes: they would take
    minutes, and many times the picture's size, before its first pixel."""

    def __init__(self, raw: bytes) -> None:
        super().__init__(raw)
        self.left: float = MOST_PARTS + len(raw) // 128
        self.exif = MOST_EXIF

    def read(self, size: int | None = -1) -> bytes:
        part = super().read(size)
        self.left -= 1
        self.exif -= part.startswith(b"Exif\0\0")
        if min(self.left, self.exif) < 0:
            raise BadImage("it is made of far more parts (segments, chunks, blocks) than programs write")
        return part


class _Paused(BytesIO):
    """A stream that is read up to a place, and from there only when more is requested."""

    pause = 0

    def read(self, size: int | None = -1) -> bytes:
        left = self.pause - self.tell()
        return super().read(left if size is not None and 0 < left < size else size)


@contextmanager
def _decoding(raw: Any, truncated: bool = False) -> Iterator[None]:
    """Make BadImage of what decoders raise over damaged bytes, which is nearly every exception there is.

    Of their warnings, of large pictures and odd metadata, what matters ends as BadImage too. With `truncated`
    Pillow fills up what is cut off.
    """
    try:
        with _pillow.set_up(truncated):
            yield
    except BadImage:
        raise
    except Exception as failure:
        reason = str(failure) or type(failure).__name__
        if raw == b"":
            reason = "the file is empty"
        elif isinstance(failure, UnidentifiedImageError):
            known = (said for start, said in _BEGINNINGS.items() if re.match(start, raw.lstrip(), re.DOTALL))
            reason = next(known, f"it is none of {', '.join(formats())}")
        raise BadImage(reason) from failure


class _Pillow:
    """What Pillow and Python's warnings keep for the whole process, set up while threads decode.

    The first thread sets it up and the last puts back what was there. A thread that needs the other
    `truncated` waits until then.
    """

    def __init__(self) -> None:
        self.turn, self.threads, self.before = threading.Condition(), 0, ExitStack()

    @contextmanager
    def set_up(self, truncated: bool) -> Iterator[None]:
        with self.turn:
            self.turn.wait_for(lambda: not self.threads or truncated == ImageFile.LOAD_TRUNCATED_IMAGES)
            if not self.threads:
                self.before.enter_context(warnings.catch_warnings(action="ignore"))
                self.before.callback(
                    setattr, ImageFile, "LOAD_TRUNCATED_IMAGES", ImageFile.LOAD_TRUNCATED_IMAGES
                )
                self.before.callback(setattr, Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
                ImageFile.LOAD_TRUNCATED_IMAGES = truncated
                Image.MAX_IMAGE_PIXELS = None  # our own limit speaks, lower or higher
            self.threads += 1
        try:
            yield
        finally:
            with self.turn:
                self.threads -= 1
                if not self.threads:
                    self.before.close()
                    self.turn.notify_all()


_pillow = _Pillow()


def _anew() -> None:
    """In a forked process, where no other thread goes on that may have held it."""
    global _pillow
    _pillow = _Pillow()


os.register_at_fork(after_in_child=_anew)


def _opened(raw: Any, most: int | None = None) -> Image.Image:
    """The picture in encoded bytes, of which only the header is read. Raises BadImage for too many pixels."""
    if isinstance(raw, Image.Image):
        picture = raw
    else:
        check_strips(raw)
        picture = Image.open(parts := _InParts(raw), formats=formats())
        if picture.format != "PNG":  # of which parts lie among and behind the pixels, too
            parts.left = math.inf  # a packed BMP is read byte by byte
    if most is not None:
        light = picture.format in LIGHT_FORMATS and picture.mode in LIGHT_MODES
        light = light and not {"transparency", "progressive"} & picture.info.keys()
        deep = any(_raw_mode(tile)[0] in (*_LOWER, _GRAY_AND_ALPHA) for tile in getattr(picture, "tile", ()))
        part = 6 if deep and picture.mode == "RGBA" else 4 if deep else 1 if light else 2
        why = f", 1/{part} of {most:,}, for what takes several copies to decode" if part > 1 else ""
        _check(*picture.size, most // part, why)
    return picture


def _raw_mode(tile: Any) -> tuple[Any, ...]:
    """How the samples of a part of a picture lie in its file, and what else its decoder is told."""
    return tile.args if isinstance(tile.args, tuple) and tile.args else (tile.args,)


def pixels_of(picture: Image.Image | Pixels) -> Pixels:
    """A copy of a picture as uint8 (H, W, C). By strips: Pillow copies twice what it gives."""
    if isinstance(picture, np.ndarray) or picture.height <= STRIP:
        return np.atleast_3d(np.array(picture))
    first = np.asarray(picture.crop((0, 0, picture.width, 1)))
    pixels = np.empty((picture.height, *first.shape[1:]), np.uint8)
    for top in range(0, picture.height, STRIP):
        end = min(top + STRIP, picture.height)
        pixels[top:end] = np.asarray(picture.crop((0, top, picture.width, end)))
    return np.atleast_3d(pixels)


def _check(width: int, height: int, most: int, why: str = "") -> None:
    if width * height > most:
        raise BadImage(f"{width}x{height} pixels are more than the limit of {most:,}{why}")


def _orientation(picture: Image.Image) -> int:
    try:
        return int(picture.getexif().get(_ORIENTATION, 1))
    except Exception:  # damaged metadata of a sound picture: taken as upright
        return 1

"""Pictures that the tests make themselves."""

import struct
import zlib
from contextlib import AbstractContextManager
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from byol.data.decode import Reading
from byol.data.images import Images


def photo(height: int = 40, width: int = 60, seed: int = 0, channels: int = 3) -> np.ndarray:
    """A smooth coloured picture, uint8 (H, W, C): survives JPEG, and every corner of it is different."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, size=(4, 4, channels), dtype=np.uint8)
    layers = [
        Image.fromarray(coarse[..., c]).resize((width, height), Image.Resampling.BICUBIC)
        for c in range(channels)
    ]
    return np.stack([np.asarray(layer) for layer in layers], axis=2)


def encoded(pixels: Any, kind: str = "PNG", **options: Any) -> bytes:
    """The bytes of a picture file, of an array or a PIL image."""
    picture = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    stream = BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


PHOTOS = np.stack([photo(8, 12, seed) for seed in range(5)])  # uint8 (5, 8, 12, 3)


def arrays(images: Images) -> np.ndarray:
    """All images as one array, uint8 (N, H, W, C)."""
    return np.stack([images.array(index) for index in range(len(images))])


def gathered(images: Images) -> AbstractContextManager[None]:
    """Have the images ready to be read in any order, as training does."""
    return images.reader.gathered(images.rows, lambda: None)


def decode(data: bytes, channels: int = 3, **options: Any) -> np.ndarray:
    """The pixels of an encoded picture as the package reads it, uint8 (H, W, C)."""
    pixels = np.asarray(Reading(channels, **options).picture(data))
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def png_16(samples: np.ndarray) -> bytes:
    """A 16-bit PNG of gray (H, W) or colours (H, W, 3), or either with alpha; Pillow writes no such."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width = samples.shape[:2]
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[samples[0, 0].size]
    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts

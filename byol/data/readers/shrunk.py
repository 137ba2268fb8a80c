"""Pictures that are decoded once and kept in memory, as small as views of few pixels need them."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from byol.data.decode import BadImage, Pixels, Reading, pixels_of
from byol.data.readers.reader import Reader, Rows

TOGETHER = 16  # pictures that are read, then decoded, between two looks whether to stop


class Shrunk(Reader):
    """Some images of a reader, uint8 (H, W, C): the shorter side is at most `side` pixels, the shape stays.

    An unreadable one is told when it is read. `poll` is called now and then; it may raise, to stop.
    """

    def __init__(
        self,
        reader: Reader,
        rows: Rows,
        reading: Reading,
        side: int,
        threads: int,
        poll: Callable[[], object],
    ) -> None:
        self.where, self.side = reader.where, side
        self.kept: list[Pixels | BadImage] = []

        def decoded(raw: Any) -> Pixels | BadImage:
            try:
                return raw if isinstance(raw, BadImage) else shrunk(reading.picture(raw), side)
            except BadImage as failure:
                return failure

        def read(row: int) -> Any:
            try:
                return reader.read(row)
            except BadImage as failure:
                return failure

        with ThreadPoolExecutor(threads) as pool:  # it decodes; a reader reads one image after another
            for first in range(0, len(rows), TOGETHER):
                poll()
                self.kept += pool.map(decoded, [read(row) for row in rows[first : first + TOGETHER].tolist()])
        reader.release()

    def __len__(self) -> int:
        return len(self.kept)

    def name(self, index: int) -> str:
        return str(index)

    def digest(self, everything: bool) -> bytes | None:
        return None

    def read(self, index: int) -> Pixels:
        kept = self.kept[index]
        if isinstance(kept, BadImage):
            raise kept
        return kept


def shrunk(picture: Any, side: int) -> Pixels:
    """A picture as uint8 (H, W, C), no larger than needed for its shorter side to have so many pixels."""
    pixels = pixels_of(picture)
    height, width = pixels.shape[:2]
    if (scale := side / min(height, width)) >= 1:
        return pixels
    size = round(height * scale), round(width * scale)
    small = F.interpolate(
        torch.from_numpy(pixels).permute(2, 0, 1)[None], size, mode="bicubic", antialias=True
    )
    return np.ascontiguousarray(small[0].permute(1, 2, 0).numpy())

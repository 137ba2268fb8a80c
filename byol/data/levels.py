"""What is black and what is white in images of more than 8 bits: one choice for a whole data set."""

import logging
from typing import Any

import numpy as np

from byol.errors import DataError

FULL = (0, 65535)  # of 16 bits
Array = np.ndarray[Any, Any]
logger = logging.getLogger("byol")


def extremes(samples: Array) -> Array:
    """The smallest and largest sample; of whole numbers but for one in 10,000: pixels of a sensor are hot or dead."""
    flat = samples.reshape(-1)
    if flat.dtype.kind == "f":
        return np.array([flat.min(), flat.max()])
    if flat.size > 200_000:
        flat = flat[np.random.default_rng(0).integers(flat.size, size=200_000)]
    left_out = len(flat) // 10_000
    found: Array = np.sort(flat)[[left_out, -1 - left_out]]
    return found


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


def levels_of(
    where: str, found: list[Array], black: float | None, white: float | None
) -> tuple[float, float] | None:
    """Black and white of images with such extremes, as requested or suggested; None of images of 8 bits."""
    whole = [ends for ends in found if ends.dtype.kind in "iu"]
    low, high = [f([e[place] for e in whole or found], default=place) for place, f in enumerate((min, max))]
    suggested = levels_between(int(low), int(high)) if whole else (0, 1)
    seen = f"The samples of {where} go from {low:,} to {high:,}"
    if black is None and white is None:
        if whole and suggested != FULL:
            logger.warning(
                f"{seen}: {suggested[0]:,} is read as black, {suggested[1]:,} as white. Others can be chosen by "
                "black= and white=, or --data.black and --data.white."
            )
        return suggested if whole else None
    levels = min(suggested[0], 0) if black is None else black, suggested[1] if white is None else white
    if levels[0] >= levels[1]:
        raise DataError("black is {:g} and white {:g}; expected a larger white.".format(*levels))
    if not found:
        logger.warning(f"{where} holds images of 8 bits, where black and white change nothing.")
    elif 16 * (high - low) < levels[1] - levels[0]:
        logger.warning(f"{seen}: few gray levels are left of them between {levels[0]:g} and {levels[1]:g}.")
    return levels

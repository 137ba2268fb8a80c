"""Random numbers as a function of a key, not of a generator's hidden state.

The same (seed, stream, epoch, image, view) gives the same numbers on any device, rank or worker, before and
after a resume. Every use has a stream of its own, right behind the seed, so that no two share their numbers.
"""

from collections.abc import Sequence
from enum import IntEnum
from numbers import Integral

import torch
from torch import Tensor

from byol.errors import ConfigError

# Constants of the SplitMix64 generator (Steele, Lea & Flood 2014), as signed 64-bit integers.
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_MIX1 = 0xBF58476D1CE4E5B9 - 2**64
_MIX2 = 0x94D049BB133111EB - 2**64


class Stream(IntEnum):
    """What random numbers are drawn for, the second part of a key. The values stay: runs repeat by them."""

    ENCODER = 0  # weights of the online network
    TARGET = 1  # weights of a target that starts apart from it
    HEADS = 2
    PROBE = 3
    ORDER = 4  # of the images in an epoch
    CROPS = 5
    VIEWS = 6
    DROPOUT = 7  # and whatever else a network draws in a training step
    HOLD_OUT = 8  # which images a run keeps out of training
    SUBSTITUTES = 9  # for unreadable images
    SUBSET = 10  # few labels
    VALIDATION = 11  # images that the settings of a classifier are chosen on
    SCORED = 12  # which images a run is scored with
    RETRIEVAL = 13  # views that are looked for among others
    TEST = 14  # which labelled images a test split is made of
    STRETCHES = 15  # the order of the stretches of shards in an epoch
    WINDOWS = 16  # the order of the images of several stretches
    PACKED = 17  # the order of images in shards
    LOCAL_CROPS = 18  # of further views, by their kind
    LOCAL_VIEWS = 19
    CUTOUT_CROPS = 20
    CUTOUT_VIEWS = 21
    CUTOUT_HOLES = 22
    TARGET_CROPS = 23
    TARGET_VIEWS = 24
    OWN_VIEWS = 25  # of a function of the user's own


def uniforms(key: Sequence[int | Tensor], count: int) -> Tensor:
    """`count` numbers in [0, 1) for each row of the key: float64 (N, count) on the CPU.

    Each part of the key is an int, or an int64 tensor (N,) with one value per row; their order matters.
    """
    state = torch.zeros(1, dtype=torch.int64)
    for part in key:
        value = part if isinstance(part, Tensor) else torch.tensor([part], dtype=torch.int64)
        state = _mix((state + _GOLDEN) ^ _mix(value))
    numbers = _mix(state[:, None] + _GOLDEN * torch.arange(1, count + 1))
    return _shifted(numbers, 11).double() * 2.0**-53


def seed_of(*key: int) -> int:
    """One seed for torch from several numbers: a non-negative int below 2**53."""
    return int(uniforms(key, 1).item() * 2.0**53)


def check_seed(seed: int, count: int = 1) -> None:
    """Raise ConfigError unless so many seeds, from this one on, are numbers that every generator takes."""
    if not isinstance(seed, Integral) or not 0 <= seed <= 2**62 - count:
        raise ConfigError(f"seed is {seed}; expected a whole number from 0 to 2**62.")


def _mix(x: Tensor) -> Tensor:
    """SplitMix64's finaliser: every input bit reaches every output bit. int64 products wrap around."""
    x = (x ^ _shifted(x, 30)) * _MIX1
    x = (x ^ _shifted(x, 27)) * _MIX2
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """A logical right shift; torch's own keeps the sign."""
    shifted: Tensor = (x >> bits) & (2 ** (64 - bits) - 1)
    return shifted

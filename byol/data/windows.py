"""The order of an epoch over images that are read the faster the closer they lie, as those of a shard.

Stretches of a few hundred neighbours are drawn at random, and shuffled several together: so what is read at
a time lies in few places, and an image stands beside others from anywhere. A function of the seed, the epoch
and the lengths of the shards; a resume, or another number of processes, needs no state.
"""

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from byol.method.draws import Stream, seed_of

STRETCH = 512  # images at most
TOGETHER = 16  # stretches that are shuffled with one another


class Windows:
    """The stretches of a set: `lengths` (S,) are those of its sections, the shards, in their order.

    Stretches are of at most `stretch` images; so many are shuffled `together`.
    """

    def __init__(self, lengths: Any, stretch: int = STRETCH, together: int = TOGETHER) -> None:
        self.together = together
        lengths = np.asarray(lengths, dtype=np.int64)
        lengths = lengths[lengths > 0]
        counts = -(-lengths // stretch)  # of stretches, as even as can be
        within = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts)
        firsts = np.repeat(lengths.cumsum() - lengths, counts)
        starts = firsts + within * np.repeat(lengths, counts) // np.repeat(counts, counts)
        self.starts = torch.from_numpy(np.append(starts, lengths.sum()))  # (P + 1,)

    def part(self, seed: int, epoch: int, first: int, end: int) -> Tensor:
        """What stands from `first` up to `end` in the order of an epoch: int64 (end - first,)."""
        drawn, ends = _drawn(self, seed, epoch)
        window = int(torch.searchsorted(ends, first, right=True))
        begin, parts = int(ends[window - 1]) if window else 0, []
        skipped, found = first - begin, 0
        while found < skipped + end - first:
            parts.append(_window(self, seed, epoch, window))
            found += len(parts[-1])
            window += 1
        return torch.cat(parts or [drawn[:0]])[skipped : skipped + end - first]


@lru_cache(maxsize=2)
def _drawn(windows: Windows, seed: int, epoch: int) -> tuple[Tensor, Tensor]:
    """The stretches in the order of an epoch (P,), and how many images the windows up to each hold (W,)."""
    lengths = windows.starts.diff()
    generator = torch.Generator().manual_seed(seed_of(seed, Stream.STRETCHES, epoch))
    drawn = torch.randperm(len(lengths), generator=generator)
    ends = lengths[drawn].cumsum(0)
    each = windows.together
    last = torch.arange(each - 1, len(ends) + each - 1, each).clamp_(max=len(ends) - 1)
    return drawn, ends[last]


@lru_cache(maxsize=2)
def _window(windows: Windows, seed: int, epoch: int, window: int) -> Tensor:
    """The images of one window, shuffled."""
    each = windows.together
    chosen = _drawn(windows, seed, epoch)[0][window * each : (window + 1) * each].tolist()
    rows = torch.cat([torch.arange(*windows.starts[one : one + 2].tolist()) for one in chosen])
    generator = torch.Generator().manual_seed(seed_of(seed, Stream.WINDOWS, epoch, window))
    return rows[torch.randperm(len(rows), generator=generator)]

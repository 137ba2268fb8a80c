"""Two views of every sample by a function of the user's own, as a training step is fed them.

The order is that of images, a function of (seed, epoch). Before a sample is read and its views are drawn, the
random states of torch, numpy and Python are set from (seed, epoch, sample): so whatever the function draws
from those is the same with any number of workers and processes, before and after a resume.
"""

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from byol.data.batches import Batch, Begin, members, untimed
from byol.data.samples import Samples, batches_of, collated, on_device
from byol.data.workers import never, part_done
from byol.errors import ByolError, ConfigError, DataError
from byol.method.draws import Stream, uniforms

TwoViews = Callable[[Any], tuple[Any, Any]]  # of one sample
Place = tuple[int, int]  # which sample, and the seed that its views are drawn from


class Pairs:
    """The two views of a sample, from its place."""

    def __init__(self, samples: Samples, views: TwoViews) -> None:
        self.samples, self.views = samples, views

    def __getitem__(self, place: Place) -> tuple[Any, Any]:
        return self.made(place)

    def made(self, place: Place, begin: Begin = untimed) -> tuple[Any, Any]:
        """The same; `begin` is told when the sample is read and when its views are made."""
        index, seed = place
        set_random_states(seed)
        begin("waiting")
        sample = self.samples[index]
        begin("views")
        return viewed(sample, self.views, self.samples.name(index))


class PairBatches(Iterator[Batch]):
    """The micro-batches of a run from step `start` on.

    Of several processes that share a micro-batch each makes its own part, of `share` samples from `first` on.
    `poll` is called before each, between samples, and while a worker is waited for; it may raise, to stop.
    `begin` is told when samples are waited for and when views are made, as far as this process makes them.
    """

    def __init__(
        self,
        pairs: Pairs,
        *,
        seed: int,
        batch_size: int,
        micro_batch_size: int,
        steps: range,
        first: int,
        share: int,
        device: torch.device,
        workers: int = 0,
        poll: Callable[[], object] = never,
        begin: Begin = untimed,
    ) -> None:
        here = begin if workers == 0 else untimed  # in another process nobody counts

        def work(position: int) -> tuple[Any, Any, Tensor]:
            epochs, rows = members(position + first, share, seed, len(pairs.samples))
            drawn = uniforms((seed, Stream.OWN_VIEWS, epochs, rows), 1)[:, 0] * 2.0**53
            several = []
            for place in zip(rows.tolist(), drawn.long().tolist(), strict=True):
                if workers == 0:  # else it is called while they are waited for, in this process
                    poll()
                part_done()
                several.append(pairs.made(place, here))
            view1, view2 = zip(*several, strict=True)
            return collated([*view1]), collated([*view2]), rows

        positions = range(steps.start * batch_size, steps.stop * batch_size, micro_batch_size)
        self._batches = batches_of(work, positions, workers=workers, poll=poll)
        self.device, self.poll, self.begin = device, poll, begin

    def __next__(self) -> Batch:
        self.begin("waiting")
        self.poll()
        view1, view2, indices = next(self._batches)
        self.begin("views")
        return Batch(on_device(view1, self.device), on_device(view2, self.device), indices)

    def close(self) -> None:
        """End the processes behind the batches, if there are any."""
        self._batches.close()


def viewed(sample: Any, views: TwoViews, name: str) -> tuple[Any, Any]:
    """The two views of a sample. Raises DataError where the function fails, ConfigError for anything else."""
    try:
        found = views(sample)
    except ByolError:
        raise
    except Exception as failure:  # code of the user's own
        raise DataError(f"views fails for sample {name}: {type(failure).__name__}: {failure}.") from failure
    if not isinstance(found, tuple | list) or len(found) != 2:
        many = f" of {len(found)}" if isinstance(found, tuple | list) else ""
        raise ConfigError(f"views gives a {type(found).__name__}{many}; expected two views of one sample.")
    return found[0], found[1]


def set_random_states(seed: int) -> None:
    """Let what torch, numpy and Python draw next on the CPU follow from a seed."""
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)

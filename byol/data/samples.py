"""Samples of any kind (sound, series, tables, volumes), which a network takes as they are; their batches."""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from byol.data.decode import BadImage, to_numpy
from byol.data.labels import class_labels
from byol.data.readers.dataset import Items
from byol.data.readers.reader import Selection
from byol.data.workers import Made, Poll, Task, in_workers, never, part_done
from byol.errors import DataError, complaint

BATCH = 64  # samples per forward pass of an encoder: a clip or a volume is large


class Samples(Selection):
    """A data set of anything that a network takes.

    `items` has a length and items: a torch data set, a tensor or an array (N, ...), a list. An item is a
    sample, or a tuple of a sample and its label. A sample is a tensor, an array or a number; a dict of those
    holds the network's keyword arguments, a tuple its positional ones. `labels`, numbers from 0 or words,
    take the place of the items' own. Raises DataError.
    """

    def __init__(self, items: Any, labels: Any = None) -> None:
        kind = type(items).__name__
        if isinstance(items, str | bytes | Mapping) or not all(
            hasattr(items, name) for name in ("__len__", "__getitem__")
        ):
            raise DataError(
                f"A {kind} does not hold samples one by one; expected a data set, a tensor, an array or a "
                "list, with a length and items. Of a data loader, give its dataset."
            )
        if len(items) == 0:
            raise DataError(f"There is no sample in the {kind}; expected at least one.")
        super().__init__(AsTheyAre(items, f"the {kind}"))
        if labels is not None:
            self._labels = class_labels(labels, len(items))

    def __getitem__(self, index: int) -> Any:
        """A sample, without its label. Raises DataError when the data set fails to give it."""
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        try:
            return self.reader.read(int(self.rows[index]))
        except BadImage as failure:
            raise DataError(
                f"Sample {self.name(index)} of {self.reader.where} fails: {failure}."
            ) from failure

    def name(self, index: int) -> str:
        return str(self.rows[index])

    def fingerprint(self) -> str:
        """A hexadecimal digest that changes with the samples: their number and some of what they hold."""
        digest = blake2b(self.reader.digest(everything=False) or b"", digest_size=16)
        digest.update(self.rows.tobytes())
        return digest.hexdigest()

    @property
    def description(self) -> str:
        """For people: "1,234 samples in the TensorDataset"."""
        return f"{len(self):,} sample{'s' * (len(self) != 1)} in {self.reader.where}"


class AsTheyAre(Items):
    """Items that nothing is done to, and their labels."""

    def read(self, index: int) -> Any:
        return self._split(index)[0]

    def _bytes(self, index: int) -> Iterator[bytes]:
        try:
            for leaf in leaves(self.read(index)):
                yield to_numpy(leaf).tobytes() if is_array(leaf) else repr(leaf).encode()
        except BadImage as failure:
            raise DataError(f"A sample of {self.where} cannot be read: {failure}.") from failure

    def _split(self, index: int) -> tuple[Any, Any]:
        try:
            item = self.items[index]
        except Exception as failure:  # a foreign data set, which may raise anything
            raise BadImage(f"{type(failure).__name__}: {failure}") from failure
        if not isinstance(item, tuple):
            return item, None
        if len(item) not in (1, 2):
            many = f"it is a tuple of {len(item)}; expected a sample, or (sample, label)"
            raise BadImage(f"{many}. What a network takes several arguments from goes in as ((a, b), label)")
        return item[0], item[1] if len(item) == 2 else None


def collated(samples: list[Any]) -> Any:
    """A batch as a network takes it: tensors (B, ...), in tuples and dicts as in the samples.

    float64, numpy's own type, becomes float32, as weights are. Raises DataError for several shapes.
    """
    try:
        batch = default_collate([mapped(plain, sample, np.ndarray) for sample in samples])
    except (RuntimeError, TypeError, KeyError) as failure:
        uneven = f"The samples of a batch do not make one tensor ({complaint(failure)})"
        raise DataError(
            f"{uneven}. Expected tensors, arrays or numbers of one shape: cut or pad in views, or before."
        ) from failure
    return mapped(lambda x: x.float() if x.dtype == torch.float64 else x, batch)


def on_device(batch: Any, device: torch.device) -> Any:
    """The batch on a device."""
    return mapped(lambda x: x.to(device), batch)


def plain(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """An array as torch takes it: not flipped, not of another machine's byte order, not read-only."""
    taken = array.dtype.isnative and array.flags.writeable and min(array.strides, default=0) >= 0
    return array if taken else np.array(array, array.dtype.newbyteorder("="))


def mapped(function: Callable[[Any], Any], batch: Any, kind: type = Tensor) -> Any:
    """The batch with a function's results in the place of its tensors, or of another kind; lists become
    tuples."""
    if isinstance(batch, kind):
        return function(batch)
    if isinstance(batch, Mapping):
        return {name: mapped(function, part, kind) for name, part in batch.items()}
    return tuple(mapped(function, part, kind) for part in batch) if isinstance(batch, list | tuple) else batch


def leaves(sample: Any) -> Iterator[Any]:
    """What a sample is made of."""
    if isinstance(sample, Mapping | list | tuple):
        for name, part in sample.items() if isinstance(sample, Mapping) else enumerate(sample):
            yield name
            yield from leaves(part)
    else:
        yield sample


def is_array(leaf: Any) -> bool:
    return isinstance(leaf, Tensor | np.ndarray)


@dataclass(frozen=True)
class Sent:
    """A tensor on its way from a worker: as it is, torch would send it through /dev/shm and open files."""

    bytes: np.ndarray[Any, np.dtype[np.uint8]]
    dtype: torch.dtype
    shape: torch.Size

    @classmethod
    def of(cls, tensor: Tensor) -> "Sent":
        flat = tensor.detach().contiguous().flatten()
        return cls(flat.view(torch.uint8).numpy(), tensor.dtype, tensor.shape)

    @property
    def tensor(self) -> Tensor:
        if len(self.bytes) == 0:  # torch gives these strides that it then refuses
            return torch.empty(self.shape, dtype=self.dtype)
        return torch.from_numpy(self.bytes).view(self.dtype).view(self.shape)


def batches_of(
    work: Callable[[Task], Any], tasks: Iterable[Task], *, workers: int, poll: Poll = never
) -> Generator[Any]:
    """The batches that `work` makes of tasks, in their order: as `made`, of any tensors."""

    def sent(task: Task) -> Made:
        return torch.empty(0, dtype=torch.uint8), mapped(Sent.of, work(task))

    with closing(in_workers(sent, tasks, workers=workers, room=1, poll=poll)) as arriving:
        for _, batch in arriving:
            yield mapped(lambda one: one.tensor, batch, Sent)


def sample_batches(samples: Samples, workers: int = 0, poll: Poll = never) -> Generator[Any]:
    """All samples in their order, some at a time, as a network takes them; read by worker processes.

    `poll` is called between samples, or while a worker is waited for; it may raise, to stop.
    """

    def read(index: int) -> Any:
        if workers == 0:
            poll()
        part_done()
        return samples[index]

    def work(rows: range) -> Any:
        return collated([read(index) for index in rows])

    every = range(len(samples))
    parts = (every[first : first + BATCH] for first in every[::BATCH])
    return batches_of(work, parts, workers=workers, poll=poll)

"""`Features`: a matrix with a row per image."""

import mmap
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from byol.data.groups import Rows as Rows
from byol.data.labels import MOST_CLASSES, is_matrix
from byol.disk import from_home, replacing
from byol.errors import ByolError, DataError, complaint, printable
from byol.features.formats import Array, check_format, read, write

BLOCK = 2**24  # bytes of rows that are worked on at once
Values = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True, repr=False)
class Features:
    """The representations of a set of images, in the images' order."""

    x: Values  # (N, D)
    y: Rows | None = None  # (N,) class numbers, or (N, classes) of 0 and 1, when the images carry labels
    names: list[str] = field(default_factory=list)  # N, or none
    classes: tuple[str, ...] | None = None  # what the class numbers stand for
    encoder_checksum: str | None = None  # `Encoder.checksum` of what gave them, where that is known

    def __post_init__(self) -> None:
        try:
            x = np.asarray(self.x, dtype=np.float32)  # scikit-learn's are float64
        except (ValueError, TypeError) as failure:  # rows of several lengths, words
            raise DataError(f"The features are not a matrix of numbers (N, D): {failure}.") from failure
        if x.ndim != 2 or 0 in x.shape:
            raise DataError(f"Features have shape {x.shape}; expected (N, D): one row per image.")
        check_finite(x)
        if self.names and len(self.names) != len(x):
            raise DataError(f"There are {len(self.names)} names for {len(x)} rows; expected one each.")
        if not all(isinstance(name, str) for name in (*self.names, *(self.classes or ()))):
            raise DataError("Names of images or classes are not text; expected a str for each.")
        object.__setattr__(self, "x", x)
        if self.y is None:
            return
        y = np.asarray(self.y)
        several = is_matrix(y)
        most = max(MOST_CLASSES, len(x), len(self.classes or ()))
        numbers = y.ndim == 1 and y.dtype.kind in "iu" and y.size and 0 <= y.min() <= y.max() < most
        if y.shape[:1] != (len(x),) or not (several or numbers):
            raise DataError(
                f"The labels are {y.dtype} of shape {y.shape}; expected for each of the {len(x)} feature "
                f"rows the number of a class, from 0 and below {most:,}, or a row of 0 and 1."
            )
        found, named = y.shape[1] if several else int(y.max()) + 1, self.classes or ()
        if self.classes is not None and (found > len(named) or (several and found < len(named))):
            raise DataError(f"The labels are of {found} classes, but {len(named)} classes are named.")
        object.__setattr__(self, "y", y.astype(np.int64, copy=False))

    def __repr__(self) -> str:
        classes = "" if self.classes is None else f", {len(self.classes):,} classes"
        return f"<Features {len(self.x):,} x {self.x.shape[1]:,}{classes}>"

    def __len__(self) -> int:
        return len(self.x)

    @property
    def description(self) -> str:
        """For people: "features of 1,234 images"."""
        return f"features of {len(self.x):,} images"

    def save(self, path: str | Path) -> None:
        """Write a file of the kind its suffix says, as a whole or not at all; missing folders are made.

        .npz has every field; .npy x alone; .parquet the columns name, label, x; .safetensors x, y, and the
        names as UTF-8 bytes `names` with the end of each in `name_ends`. Raises ConfigError for another
        suffix.
        """
        path = from_home(path)
        check_format(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            write(vars(self), temporary)

    @classmethod
    def load(cls, path: str | Path, *, mapped: bool = False) -> "Features":
        """Read what `save` wrote, or `x` alone of the same kinds from elsewhere.

        `mapped` leaves x of a .npy or .safetensors file on the disk: a read-only array whose rows are read
        when used. Raises DataError when the file is missing or holds something else.
        """
        try:
            return cls(**read(from_home(path), mapped=mapped))
        except ByolError as failure:
            reason = printable(str(failure))
            raise type(failure)(f"{path} cannot be used as features. {reason}") from failure
        except Exception as failure:  # damaged files end in nearly every exception there is
            reason = getattr(failure, "strerror", None) or printable(complaint(failure))
            expected = "expected a file that `byol embed` wrote."
            raise DataError(f"{path} does not hold features ({reason}); {expected}") from failure


def check_finite(x: Array) -> None:
    """Raise DataError when rows (N, D) hold NaN or infinity."""
    bad = [first + row for first, part in blocks(x) for row in np.flatnonzero(~np.isfinite(part).all(axis=1))]
    if bad:
        raise DataError(
            f"{len(bad)} of {len(x)} feature rows hold NaN or infinity (the first is row {bad[0]}). The "
            "encoder that gave them is damaged or diverged: take another checkpoint."
        )


def matrix(features: Features | Array) -> Values:
    """The matrix (N, D) of features, checked."""
    return features.x if isinstance(features, Features) else Features(features).x


def tensor_of(array: Array) -> Tensor:
    """An array as a tensor to read from, without a copy where it is in one piece."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that a mapped file cannot be written to
        return torch.from_numpy(np.ascontiguousarray(array))


def blocks(x: Any) -> Iterator[tuple[int, Any]]:
    """Consecutive rows of an array or tensor (N, D), BLOCK bytes at a time, with the first row's number.

    Of a mapped file only the block at hand is held in memory: what was read is given back to the system,
    unless the file can be written to, for then changes could be lost.
    """
    owner, step = x, block_rows(x)
    while isinstance(owner, np.ndarray) and getattr(owner, "mode", "r") == "r":
        owner = owner.base
    for first in range(0, len(x), step):
        yield first, x[first : first + step]
        if isinstance(owner, mmap.mmap):
            owner.madvise(mmap.MADV_DONTNEED)


def block_rows(x: Any) -> int:
    """How many rows of an array or tensor (N, D) make a block."""
    return max(1, min(len(x), BLOCK // int(x.itemsize * x.shape[1])))


def unit_blocks(x: Tensor | Array, device: torch.device) -> Iterator[tuple[int, Tensor]]:
    """As `blocks`, each scaled to rows of length 1, float32 on the device."""
    for first, block in blocks(x):
        block = tensor_of(block) if isinstance(block, np.ndarray) else block
        yield first, unit(block.to(device))


def unit(rows: Tensor) -> Tensor:
    """Rows (N, D) scaled to length 1, float32; rows of zeros stay."""
    rows = rows.float()
    lengths: Tensor = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    if ((lengths > 1e-15) & (lengths < 1e15)).all():
        return rows / lengths
    tiny = torch.finfo(torch.float32).tiny
    rows = rows / rows.abs().amax(dim=1, keepdim=True).clamp_(min=tiny)  # else the squares overflow or vanish
    return F.normalize(rows, dim=1)

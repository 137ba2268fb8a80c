"""Folders that features are kept in while they are computed, and found in the next time."""

import fcntl
import glob
import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

import numpy as np
import torch

from byol.data.images import Images
from byol.disk import left_behind, parse_json, replacing
from byol.encoders.encoder import Encoder, device_of, digest
from byol.errors import CheckpointError, DataError
from byol.features.features import Rows, Values
from byol.world import World

logger = logging.getLogger("byol")
FORMAT = 2
BATCH = 256  # images per forward pass
SHARD = 8 * BATCH  # images whose features are kept together, and lost together when a job is killed


@dataclass(frozen=True)
class Shard:
    """The features of SHARD consecutive images; the same whoever computes them, because its batches are."""

    number: int
    rows: Rows  # (n,) which images could be read
    x: Values  # (n, D)
    bad: list[tuple[int, str]]  # images that could not be read, and why


def shard_numbers(images: Images) -> range:
    """The numbers of all the images' shards."""
    return range(-(-len(images) // SHARD))


@dataclass(frozen=True)
class Store:
    """A folder of shards. Each appears as a whole or not at all; a damaged one counts as missing."""

    folder: Path
    optional: bool  # a shard that cannot be written is warned of, and computed again another time

    def file(self, number: int) -> Path:
        return self.folder / f"shard-{number:06d}.npz"

    def has(self, number: int) -> bool:
        return os.path.exists(self.file(number))

    def images(self) -> int:
        """How many images are done, by all processes together; too many by what the last shard lacks."""
        return SHARD * len(list(self.folder.glob("shard-*.npz")))

    def keep(self, shard: Shard) -> bool:
        """Write a shard. Returns whether it is there; raises DiskError unless it is optional."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with replacing(self.file(shard.number)) as temporary, temporary.open("wb") as file:
                np.savez(file, rows=shard.rows, x=shard.x, bad=np.array(json.dumps(shard.bad)))
        except OSError as failure:
            if not self.optional:
                raise
            logger.warning("The features could not be kept in %s (%s).", self.folder, failure)
            return False
        return True

    def read(self, number: int, images: int, width: int) -> Shard | None:
        """A shard of so many images in all, of features (n, width); None when it is damaged or not there."""
        if not self.has(number):
            return None
        try:
            with self.file(number).open("rb") as file:
                parts = np.load(file, allow_pickle=False)  # every byte is checked
                rows, x, bad = parts["rows"], parts["x"], parse_json(str(parts["bad"]))
            count = len(range(images)[number * SHARD :][:SHARD])
            if (x.dtype, x.shape, len(rows) + len(bad)) != (np.float32, (len(rows), width), count):
                raise ValueError(f"{x.dtype} of shape {x.shape}")
        except Exception as failure:  # damaged files end in nearly every exception there is
            logger.warning("%s is damaged (%s); it is computed again.", self.file(number), failure)
            return None
        return Shard(number, rows, x, bad)


def cache_in(folder: Path, encoder: Encoder, images: Images, normalize: bool) -> Store | None:
    """The store in a folder for features that may be wanted years later, by another version of this program.

    It is named after the encoder's tensors, its description and its response to a fixed picture, and after
    every byte of the images; labels are not in it. None for datasets of other libraries, which may change
    without a trace.
    """
    checksum = images.checksum()
    if checksum is None:
        return None
    for left in folder.glob("*/.tmp-*"):
        if left_behind(left):
            left.unlink(missing_ok=True)
    height, width = encoder.info.image_size
    shape = (1, encoder.info.channels, height + height // 3, width + width // 3)
    noise = torch.Generator().manual_seed(0)
    picture = torch.randint(0, 256, shape, generator=noise, dtype=torch.uint8)
    response = encoder(picture.to(device_of(encoder))).cpu()
    response *= 100 / response.abs().max().clamp(min=1e-12)  # the last digits hang on the number of threads
    return Store(folder / _key(encoder, normalize, f"{checksum} {response.round().tolist()}"), optional=True)


@contextmanager
def store_beside(
    out: Path, encoder: Encoder, images: Images, normalize: bool, world: World
) -> Iterator[Store | None]:
    """A store in a folder beside a file, while the world's processes compute its features.

    The folder stays when the block ends with an error, unless it is empty or the error would come again. It
    is named after a sample of the images: to read a million twice, in each process, would cost more than it
    saves. None when one process computes a single shard. Raises CheckpointError when another job is at the
    same work.
    """
    if world.size == 1 and len(images) <= SHARD:
        yield None
        return
    folder = out.with_name(f"{out.name}.partial-{_key(encoder, normalize, images.fingerprint())[:16]}")
    store = Store(folder, optional=False)
    if world.rank > 0:
        world.wait()  # until rank 0 holds it
        yield store
        return
    folder.mkdir(parents=True, exist_ok=True)
    lock = _lock(folder)
    if lock is None:
        raise CheckpointError(f"Another process writes to {folder}. Wait for it, or choose another --out.")
    with lock:
        world.wait()
        keep = True
        try:
            yield store
            keep = False
        except DataError:
            keep = False
            raise
        finally:
            if not keep or store.images() == 0:
                shutil.rmtree(folder)
    for other in out.parent.glob(f"{glob.escape(out.name)}.partial-*"):  # of other images or encoders
        if unused := _lock(other):
            unused.close()
            shutil.rmtree(other)


def _lock(folder: Path) -> TextIO | None:
    """The lock of a folder, which ends with the process; None when another process has it."""
    lock = (folder / ".lock").open("a")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    return lock


def _key(encoder: Encoder, normalize: bool, images: str) -> str:
    """Hexadecimal, of the encoder, how images are worked on, and what names them."""
    work = {"format": FORMAT, "images": images, "batch": BATCH, "shard": SHARD, "normalize": normalize}
    return digest(encoder.tensors(), {**asdict(encoder.info), **work})

"""Features of a large set of images: what is done is kept beside the output, and any number of processes share the work."""

import fcntl
import glob
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from byol.data.sources import Images
from byol.disk import check_writable, replacing
from byol.errors import ByolError, CheckpointError, ConfigError, DataError, Stopped
from byol.features.extract import BATCH, SHARD, Shard, check_bad, embed, embedded, features_of, images_for, shard_count
from byol.features.files import Array, Features, check_finite, check_format
from byol.weights.files import Encoder, digest
from byol.world import World

FORMAT = 1


def embed_to(
    out: Path,
    encoder: Encoder,
    images: Any,
    world: World,
    *,
    workers: int = 0,
    normalize: bool = False,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Features | None:
    """As `embed`, into a file, with the work shared by the world's processes. Rank 0 gets the features, others None.

    Every SHARD batches are kept in a folder beside `out` until the file is there: the same call continues what was stopped,
    with any number of processes, and the file is the same to the byte. `report` hears how many images of how many are done.
    Raises what `embed` raises, Stopped on Ctrl-C, and CheckpointError when another process is at the same work.
    """
    source = images_for(encoder, images, workers)
    count = shard_count(source)
    if world.size == 1 and count <= 1:
        features = embed(encoder, source, workers=workers, normalize=normalize)
        with _written(out):
            features.save(out)
        return features
    folder = out.with_name(f"{out.name}.partial-{fingerprint(encoder, source, normalize)}")
    with _written(out), _held(folder, world):
        missing = [number for number in range(count)[world.rank :: world.size] if not _file(folder, number).exists()]
        report(_images_done(folder, source), len(source))
        for shard in embedded(encoder, source, missing, workers=workers, normalize=normalize):
            check_finite(shard.x, "The encoder's weights are damaged or diverged; take another checkpoint.")
            _keep(folder, shard)
            report(_images_done(folder, source), len(source))
        world.wait()
        if world.rank > 0:
            return None
        features = _merged(folder, encoder, source, count)
        features.save(out)
        for leftover in out.parent.glob(f"{glob.escape(out.name)}.partial-*"):
            if leftover == folder or not _in_use(leftover):
                shutil.rmtree(leftover)
    return features


def check_out(out: Path) -> None:
    """Raise ConfigError, before any work, for a file that features cannot go to, or that is there and would be lost."""
    check_format(out)
    if os.path.isdir(out):
        raise ConfigError(f"--out is {out}, which is a folder. Give the name of a file.")
    if not os.path.isdir(out.parent):
        raise ConfigError(f"--out is {out}, but there is no folder {out.parent}. Make it first.")
    if os.path.exists(out):
        try:
            Features.load(out, mapped=True)
        except DataError as failure:
            raise ConfigError(f"--out is {out}, which is there already and holds no features. Give another name.") from failure
    check_writable(out.parent)


def fingerprint(encoder: Encoder, images: Images, normalize: bool) -> str:
    """A hexadecimal digest of what features follow from: the encoder, how images are worked on, their names and a sample.

    Reading a million images twice, in each process, to notice that one was changed meanwhile would cost more than it saves.
    """
    work = {"format": FORMAT, "images": images.fingerprint(), "batch": BATCH, "shard": SHARD, "normalize": normalize}
    return digest(encoder.net.state_dict(), {**asdict(encoder.info), **work})[:16]


@contextmanager
def _written(out: Path) -> Iterator[None]:
    """A full disk and the like as one sentence."""
    try:
        yield
    except OSError as failure:
        raise ByolError(
            f"The features could not be written to {out}: {failure}. Make room and run the same again."
        ) from failure


@contextmanager
def _held(folder: Path, world: World) -> Iterator[None]:
    """The folder, made and locked by rank 0 before the others use it; it stays after a failure if something is in it."""
    if world.rank > 0:
        world.wait()
        yield
        return
    folder.mkdir(exist_ok=True)
    with (folder / ".lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as failure:
            raise CheckpointError(f"Another process writes to {folder}. Wait for it, or choose another --out.") from failure
        world.wait()
        try:
            yield
        except KeyboardInterrupt as failure:
            if not _done(folder):
                raise
            raise Stopped(f"What is done is kept in {folder}; the same command continues.", exit_code=130) from failure
        except DataError:  # which the same command would end with again
            shutil.rmtree(folder)
            raise
        finally:
            if folder.exists() and not _done(folder):
                shutil.rmtree(folder)


def _in_use(folder: Path) -> bool:
    """Whether another process works in a folder."""
    try:
        with (folder / ".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def _merged(folder: Path, encoder: Encoder, images: Images, count: int) -> Features:
    """All shards as one; the matrix stays in a file that is mapped, so that the memory need not hold it."""
    bad: list[tuple[int, str]] = []
    for number in range(count):
        bad += json.loads(str(_part(folder, number, "bad")))
    check_bad(images, bad)
    rows = np.concatenate([_part(folder, number, "rows") for number in range(count)])
    shape = len(rows), _part(folder, 0, "x").shape[1]
    with (folder / "x.npy").open("wb") as file:  # written, not mapped: on a full disk a mapping kills the process
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
        for number in range(count):
            file.write(_part(folder, number, "x").data)
    return features_of(encoder, images, rows, np.load(folder / "x.npy", mmap_mode="r", allow_pickle=False))


def _file(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:06d}.npz"


def _done(folder: Path) -> list[Path]:
    return list(folder.glob("shard-*.npz"))


def _images_done(folder: Path, images: Images) -> int:
    """As all processes together have done them; the last shard may be smaller, so at the end it is a little too many."""
    return min(len(_done(folder)) * BATCH * SHARD, len(images))


def _keep(folder: Path, shard: Shard) -> None:
    with replacing(_file(folder, shard.number)) as temporary, temporary.open("wb") as file:
        np.savez(file, rows=shard.rows, x=shard.x, bad=np.array(json.dumps(shard.bad)))


def _part(folder: Path, number: int, name: str) -> Array:
    path = _file(folder, number)
    try:
        with np.load(path, allow_pickle=False) as parts:
            part: Array = parts[name]
            return part
    except Exception as failure:  # damaged files end in nearly every exception there is
        path.unlink(missing_ok=True)
        raise CheckpointError(f"{path} was damaged and is removed; the same command computes it again.") from failure

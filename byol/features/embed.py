"""Images through an encoder: the matrix that everything after training starts from."""

import fcntl
import glob
import json
import logging
import os
import shutil
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from hashlib import blake2b
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from byol.data.decode import BadImage
from byol.data.images import Images
from byol.data.workers import made, never
from byol.disk import check_writable, left_behind, parse_json, replacing
from byol.encoders.encoder import Encoder, check_savable, device_of, digest
from byol.errors import CheckpointError, ConfigError, DataError, Stopped, printable
from byol.features.features import Array, Features as Features, Rows, Values, check_finite, check_format
from byol.world import World

logger = logging.getLogger("byol")

BATCH = 256  # images per forward pass
SHARD = 8  # batches that are kept together, and lost together when a large job is killed


@dataclass(frozen=True)
class Shard:
    """The features of consecutive images; the same whichever process computes them, because its batches are."""

    number: int
    rows: Rows  # (n,) which images could be read
    x: Values  # (n, D)
    bad: list[tuple[int, str]]  # images that could not be read, and why


class _Prepared:
    """What a worker runs: the rows of a batch -> their images as the encoder is fed them, and what to say of them."""

    def __init__(self, images: Images, encoder: Encoder, poll: Callable[[], object]) -> None:
        self.images, self.prepare, self.poll = images, encoder.prepare, poll
        self.shape = encoder.info.channels, *encoder.info.image_size

    def __call__(self, rows: range) -> tuple[Tensor, tuple[list[int], list[tuple[int, str]]]]:
        good: list[int] = []
        bad: list[tuple[int, str]] = []
        result = torch.empty((len(rows), *self.shape))
        for index in rows:
            self.poll()
            try:
                pixels = torch.from_numpy(np.ascontiguousarray(self.images.array(index)))
            except BadImage as failure:
                bad.append((index, str(failure)))
                continue
            result[len(good)] = self.prepare(pixels.permute(2, 0, 1)[None])[0]
            good.append(index)
        return result[: len(good)], (good, bad)


def check_encoder(encoder: object) -> None:
    """Raise ConfigError for anything but an Encoder, which alone knows how its images are prepared."""
    if not isinstance(encoder, Encoder):
        raise ConfigError(
            f"The encoder is a {type(encoder).__name__}; expected what load_encoder(path) gives, or run.encoder. "
            "A learner embeds a batch with learner.embed(images)."
        )


Prepared = tuple[list[int], Tensor, list[tuple[int, str]]]


def prepared_batches(
    images: Images,
    encoder: Encoder,
    workers: int,
    firsts: Iterable[int] | None = None,
    poll: Callable[[], object] = never,
) -> Generator[Prepared]:
    """Images as an encoder is fed them but not normalised: batches that begin at `firsts`, or all in order.

    Each time: which images, their pixels (n, C, h, w) float in [0, 1], the caller's until the next are asked for, and the
    unreadable ones with the reasons. `poll` is called between images; it may raise, to stop.
    """
    work = _Prepared(images, encoder, poll)
    starts = range(0, len(images), BATCH) if firsts is None else firsts
    batches = (range(first, min(first + BATCH, len(images))) for first in starts)
    room = 4 * BATCH * prod(work.shape)
    with closing(made(work, batches, workers=workers, room=room, poll=poll)) as found:
        for pixels, (good, bad) in found:
            yield good, pixels, bad


def embed(
    encoder: Encoder, images: Any, *, workers: int = 0, normalize: bool = False, strict: bool = False
) -> Features:
    """The representation of every image, on the encoder's device, in the images' order.

    `images` is anything `open_images` takes. `normalize` scales every row to length 1. Unreadable images are left out with
    a warning that names them; with `strict` they raise DataError, as they do when none can be read.
    """
    source = images_for(encoder, images, workers)
    return features_of(
        encoder, source, *computed(encoder, source, workers=workers, normalize=normalize, strict=strict)
    )


def computed(
    encoder: Encoder, images: Images, *, workers: int, normalize: bool = False, strict: bool = False
) -> tuple[Rows, Values]:
    """Which images can be read, and their representations: (n,) and (n, D). For the rest see `embed`."""
    shards = list(embedded(encoder, images, range(shard_count(images)), workers=workers, normalize=normalize))
    check_bad(images, [entry for shard in shards for entry in shard.bad], strict=strict)
    return np.concatenate([shard.rows for shard in shards]), np.concatenate([shard.x for shard in shards])


def images_for(encoder: Encoder, images: Any, workers: int) -> Images:
    """The images, opened with the encoder's channels. Raises ConfigError for what cannot be embedded."""
    check_encoder(encoder)
    if workers < 0:
        raise ConfigError(f"workers is {workers}; expected 0 or more.")
    return encoder.open(images)


def check_channels(encoder: Encoder, images: Images, role: str = "") -> None:
    """Raise ConfigError for images, perhaps given in some role, of other channels than the encoder takes."""
    if images.channels != encoder.info.channels:
        given = f"{images.description} given as {role}" if role else images.description
        raise ConfigError(
            f"{given} have {images.channels} channels, the encoder takes {encoder.info.channels}. Open the images with "
            "channels= to match."
        )


def shard_count(images: Images) -> int:
    """How many shards the images make."""
    return -(-len(images) // (BATCH * SHARD))


def embedded(
    encoder: Encoder, images: Images, numbers: Sequence[int], *, workers: int, normalize: bool
) -> Iterator[Shard]:
    """Some of the images' shards, in the given order."""
    device = device_of(encoder)
    firsts = [
        first for number in numbers for first in range(number * SHARD * BATCH, len(images), BATCH)[:SHARD]
    ]
    rows: list[int] = []
    parts: list[Values] = []
    bad: list[tuple[int, str]] = []
    for first, (indices, pixels, unreadable) in zip(
        firsts, prepared_batches(images, encoder, workers, firsts), strict=True
    ):
        bad += unreadable
        if indices:
            representation = encoder(pixels.to(device))
            parts.append((F.normalize(representation, dim=1) if normalize else representation).cpu().numpy())
            rows += indices
        number, place = divmod(first // BATCH, SHARD)
        if place == SHARD - 1 or first + BATCH >= len(images):
            x = np.concatenate(parts) if parts else np.zeros((0, encoder.info.features), dtype=np.float32)
            yield Shard(number, np.array(rows, dtype=np.int64), x, bad)
            rows, parts, bad = [], [], []


def check_bad(images: Images, bad: list[tuple[int, str]], *, strict: bool = False) -> None:
    """Warn of images that cannot be read; raise DataError when there are no others, or at all when `strict`."""
    told = [f"{printable(images.name(index))} ({reason})" for index, reason in bad[:5]]
    if len(bad) == len(images):
        raise DataError(f"None of {images.description} can be read: {told[0] if told else 'there are none'}.")
    if not bad:
        return
    listing = ", ".join(told) + (" ..." if len(bad) > len(told) else "")
    if strict:
        raise DataError(
            f"{len(bad)} of {len(images)} images cannot be read: {listing}. Every one is needed here."
        )
    logger.warning("Left out, because unreadable: %d of %s: %s", len(bad), images.description, listing)


def features_of(encoder: Encoder, images: Images, rows: Rows, x: Values) -> Features:
    """The matrix of an encoder with the labels and names of the images that its rows are of."""
    labels = images.label_matrix if images.labels is None else images.labels
    names = [images.name(row) for row in rows.tolist()]
    return Features(x, None if labels is None else labels[rows], names, images.classes, encoder.checksum())


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
        features.save(out)
        return features
    folder = out.with_name(f"{out.name}.partial-{fingerprint(encoder, source, normalize)}")
    with _held(folder, world):
        missing = [
            number for number in range(count)[world.rank :: world.size] if not _file(folder, number).exists()
        ]
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
            raise ConfigError(
                f"--out is {out}, which is there already and holds no features. Give another name."
            ) from failure
    check_writable(out.parent)


def fingerprint(encoder: Encoder, images: Images, normalize: bool) -> str:
    """A hexadecimal digest of what features follow from: the encoder, how images are worked on, their names and a sample.

    Reading a million images twice, in each process, to notice that one was changed meanwhile would cost more than it saves.
    """
    work = {
        "format": FORMAT,
        "images": images.fingerprint(),
        "batch": BATCH,
        "shard": SHARD,
        "normalize": normalize,
    }
    return digest(encoder.net.state_dict(), {**asdict(encoder.info), **work})[:16]


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
            raise CheckpointError(
                f"Another process writes to {folder}. Wait for it, or choose another --out."
            ) from failure
        world.wait()
        try:
            yield
        except KeyboardInterrupt as failure:
            if not _done(folder):
                raise
            raise Stopped(
                f"What is done is kept in {folder}; the same command continues.", exit_code=130
            ) from failure
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
        bad += parse_json(str(_part(folder, number, "bad")))
    check_bad(images, bad)
    rows = np.concatenate([_part(folder, number, "rows") for number in range(count)])
    shape = len(rows), _part(folder, 0, "x").shape[1]
    with (folder / "x.npy").open(
        "wb"
    ) as file:  # written, not mapped: on a full disk a mapping kills the process
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
        raise CheckpointError(
            f"{path} was damaged and is removed; the same command computes it again."
        ) from failure


def cached(encoder: Encoder, images: Images, folder: Path | None, *, workers: int = 0) -> Features:
    """As `embed`, but features that a file in the folder holds are read from it, and others are kept there.

    The file is named after the encoder's tensors, description and answer to a fixed picture, and after the names of the
    images and every byte of them; labels are not in it. It appears as a whole or not at all, and a damaged one is written
    again. Without a folder, and for datasets of other libraries, which may change without a trace, nothing is kept.
    """
    checksum = None if folder is None else images.checksum()
    images = images_for(encoder, images, workers)
    if folder is None or checksum is None:
        return features_of(encoder, images, *computed(encoder, images, workers=workers))
    file = folder / f"{key(encoder, checksum)}.npz"
    kept = read(file, len(images), encoder.info.features)
    rows, x = kept or computed(encoder, images, workers=workers)
    features = features_of(encoder, images, rows, x)  # which refuses NaN
    if kept is None:
        write(file, rows, x)
    else:
        unread = np.setdiff1d(np.arange(len(images)), rows).tolist()
        check_bad(images, [(index, "as when the kept features were computed") for index in unread])
    return features


def key(encoder: Encoder, checksum: str) -> str:
    """A hexadecimal name that changes with the encoder, with the code that prepares and computes, and with the images."""
    check_savable(encoder.net)
    height, width = encoder.info.image_size
    noise = torch.Generator().manual_seed(0)
    shape = (1, encoder.info.channels, height + height // 3, width + width // 3)
    picture = torch.randint(0, 256, shape, generator=noise, dtype=torch.uint8)
    answer = encoder(picture.to(device_of(encoder))).cpu()
    answer = (
        100 * answer / answer.abs().max().clamp(min=1e-12)
    ).round()  # the last digits hang on the number of threads
    parts = f"{digest(encoder.net.state_dict(), asdict(encoder.info))} {answer.tolist()} {checksum}"
    return blake2b(parts.encode(), digest_size=16).hexdigest()


def read(file: Path, images: int, width: int) -> tuple[Rows, Values] | None:
    """Which images the features are of, and the features; None when there is no file, or a damaged one."""
    if not os.path.exists(file):
        return None
    try:
        with file.open("rb") as opened:
            loaded = np.load(opened, allow_pickle=False)  # a zip archive: every byte read is checked
            rows, x = loaded["rows"], loaded["x"]
    except Exception:  # damaged files end in nearly every exception there is
        logger.warning("The features in %s are damaged; they are computed again.", file)
        return None
    if x.dtype != np.float32 or x.shape != (len(rows), width) or len(rows) > images:
        logger.warning("The features in %s have the shape %s; they are computed again.", file, x.shape)
        return None
    return rows, x


def write(file: Path, rows: Rows, x: Values) -> None:
    """Keep features; what cannot be written is computed again another time."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        for left in file.parent.glob(".tmp-*"):
            if left_behind(left):
                left.unlink(missing_ok=True)
        with replacing(file) as temporary, temporary.open("wb") as opened:
            np.savez(opened, rows=rows, x=x)
    except OSError as failure:
        logger.warning("The features could not be kept in %s (%s).", file.parent, failure)

"""Images through an encoder: the matrix that everything after training starts from.

It is computed a shard of images at a time, and the shards can be kept in a folder: while a large job is done,
or to be found the next time. Of more images than one file should hold the features are a folder of files.
"""

import glob
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from hashlib import blake2b
from io import FileIO
from itertools import islice
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch

from byol.data.decode import BadImage
from byol.data.images import Images
from byol.data.samples import Samples, on_device, sample_batches
from byol.data.workers import Made, Progress, in_workers, never, part_done
from byol.disk import (
    at_once,
    check_writable,
    hold,
    left_behind,
    parse_json,
    read_json,
    replacing,
    write_text,
    writing,
)
from byol.encoders.encoder import Encoder, device_of, digest
from byol.errors import CheckpointError, ConfigError, DataError, printable
from byol.features.features import Features as Features, Rows, Values, check_finite, unit
from byol.world import ALONE, World

logger = logging.getLogger("byol")
FORMAT = 2
BATCH = 256  # images per forward pass
SHARD = 8 * BATCH  # images whose features are kept together, and lost together when a job is killed
PART = 8 * SHARD  # images whose features are in one file of a folder of them
DESCRIPTION = "_features.json"  # of such a folder; what reads all of its files passes over such a name
Bad = list[tuple[int, str]]  # images that could not be read, and why
Shard = tuple[Rows, Values, Bad]  # (n,) which images could be read, (n, D), and the others


@dataclass(frozen=True)
class Store:
    """A folder of shards. Each appears as a whole or not at all; a damaged one counts as missing."""

    folder: Path
    optional: bool  # a shard that cannot be written is warned of, and computed again another time

    def file(self, first: int) -> Path:
        return self.folder / f"shard-{first // SHARD:06d}.npz"

    def images(self) -> int:
        """How many images are done, by all processes together; too many by what the last shard lacks."""
        return SHARD * len(list(self.folder.glob("shard-*.npz")))

    def keep(self, first: int, rows: Rows, x: Values, bad: Bad) -> None:
        """Write a shard. Raises DiskError when it cannot be written, unless it is optional."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with replacing(self.file(first)) as temporary, temporary.open("wb") as file:
                np.savez(file, rows=rows, x=x, bad=np.array(json.dumps(bad)))
        except OSError as failure:
            if not self.optional:
                raise
            logger.warning("The features could not be kept in %s (%s).", self.folder, failure)

    def read(self, first: int, images: int, width: int) -> Shard | None:
        """A shard of so many images, of features (n, width); None, with a warning, when it is damaged."""
        try:
            with self.file(first).open("rb") as file:
                parts = np.load(file, allow_pickle=False)  # every byte is checked
                rows, x, bad = parts["rows"], parts["x"], parse_json(str(parts["bad"]))
            if (x.dtype, x.shape, len(rows) + len(bad)) != (np.float32, (len(rows), width), images):
                raise ValueError(f"{x.dtype} of shape {x.shape}")
        except Exception as failure:  # damaged files end in nearly every exception there is
            logger.warning("%s is damaged (%s); it is computed again.", self.file(first), failure)
            return None
        return rows, x, bad


def embed(
    encoder: Encoder,
    images: Any,
    *,
    workers: int = 0,
    normalize: bool = False,
    strict: bool = False,
    store: Store | str | Path | None = None,
    progress: Progress = lambda done, total: None,
    world: World = ALONE,
) -> Features:
    """The representation of every image, on the encoder's device, in the images' order.

    `images` is anything `open_images` takes; for an encoder that was trained with views of the user's own,
    anything `Samples` takes, which is not stored. `normalize` scales every row to length 1. Unreadable images
    are left out with a warning that names them; with `strict` they raise DataError, as they do when none
    can be read. `store` is a folder that features are kept in, and found in the next time as long as the
    encoder and every byte of the images stay the same. `progress` is told again and again how many images
    of how many are done; it may raise, to stop. With a `world` rank 0 calls this, while the others
    `contribute`.
    """
    check_encoder(encoder)
    if workers < 0:
        raise ConfigError(f"workers is {workers}; expected 0 or more.")
    if not encoder.info.takes_images:
        samples = images if isinstance(images, Samples) else Samples(images)
        return embed_samples(encoder, samples, workers, normalize, progress)
    source = encoder.open(images)
    if isinstance(store, str | Path):
        folder = Path(store)
        store = world.first(lambda: cache_in(folder, encoder, source, normalize))
    rows: list[Rows] = []
    bad: Bad = []

    def parts() -> Generator[Values]:
        with closing(shared(encoder, source, store, workers, normalize, progress, world)) as found:
            for readable, x, others in found:
                rows.append(readable)
                bad.extend(others)
                yield x
        check_bad(source, bad, strict)

    if store is None or store.optional:
        x = np.concatenate([*parts()])
    else:  # in a file that is mapped, so that the memory need not hold it
        with tempfile.TemporaryFile(dir=store.folder.parent) as file, closing(parts()) as found:
            for part in found:
                with writing(store.folder):  # not by a mapping: on a full disk that kills the process
                    file.write(part.data)
            file.flush()
            x = np.memmap(file, np.float32, "r").reshape(-1, encoder.info.features)
    return _features(np.concatenate(rows), x, source, encoder)


def embed_into(
    folder: Path,
    encoder: Encoder,
    images: Images,
    *,
    workers: int = 0,
    normalize: bool = False,
    progress: Progress = lambda done, total: None,
    world: World = ALONE,
) -> tuple[int, int]:
    """The representation of every image in a folder of parquet files, PART images or so in each.

    A file appears as a whole and stays, so that the same call continues what was stopped. The processes of a
    world, which all call this, share the files; none holds more than one of them. Gives the numbers of files
    and of rows. Raises ConfigError for a folder of anything else, CheckpointError while another job is at it,
    and DataError when none of the images of a file can be read.
    """
    count = max(1, round(len(images) / PART))  # the last one holds up to half as many more or fewer
    ends = [*range(PART, count * PART, PART), len(images)]
    parts = [range(number * PART, end) for number, end in enumerate(ends)]
    files = [folder / f"part-{number:06d}.parquet" for number in range(count)]
    with ExitStack() as lock:

        def begun() -> list[int]:
            folder.mkdir(parents=True, exist_ok=True)
            lock.enter_context(_lock(folder))
            _describe(folder, encoder, images, normalize, files)
            return [number for number, file in enumerate(files) if not _rows(file)]

        missing = world.first(begun)
        before, own = len(images) - sum(len(parts[n]) for n in missing), missing[world.rank :: world.size]

        def report(done: int, total: int) -> None:
            progress(min(before + done * world.size, total), total)

        firsts = [first for number in own for first in parts[number][::SHARD]]
        with closing(shards(encoder, images, None, workers, normalize, report, firsts)) as found:
            for number in own:
                part = parts[number]
                rows, x, bad = zip(*islice(found, len(part[::SHARD])), strict=True)
                unreadable = [(row - part.start, reason) for some in bad for row, reason in some]
                check_bad(images.subset(part), unreadable, False)
                _features(np.concatenate(rows), np.concatenate(x), images, encoder).save(files[number])
        world.wait()
        return count, sum(_rows(file) or 0 for file in files)


def _features(rows: Rows, x: Values, images: Images, encoder: Encoder) -> Features:
    """The features of some of the images, with their labels and names."""
    y, names = images.y, [images.name(row) for row in rows.tolist()]
    return Features(x, None if y is None else y[rows], names, images.classes, encoder.checksum())


def _describe(folder: Path, encoder: Encoder, images: Images, normalize: bool, files: list[Path]) -> None:
    """Say in a folder what it is for. Raises ConfigError when it says something else, or holds something."""
    seen = blake2b(b"" if images.y is None else images.y.tobytes(), digest_size=16).hexdigest()
    key = _key(encoder, normalize, f"{images.fingerprint()} {seen} {images.classes} {PART}")
    about = {"images": len(images), "features": encoder.info.features, "files": len(files), "key": key}
    try:
        there = read_json(folder / DESCRIPTION)
    except FileNotFoundError:
        there = None
    except ValueError:
        there = "damaged"
    if there is None and all(name == ".lock" or name.startswith(".tmp-") for name in os.listdir(folder)):
        write_text(folder / DESCRIPTION, json.dumps(about, indent=1) + "\n")
    elif there != about:
        held = "other files" if there is None else "features of other images or of another encoder"
        raise ConfigError(f"{printable(str(folder))} holds {held}. Choose another --out.")
    for left in filter(left_behind, folder.glob(".tmp-*")):
        left.unlink(missing_ok=True)


def _rows(file: Path) -> int | None:
    """The number of rows in a parquet file; None, with a warning when it is there but damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with open(file, "rb", opener=at_once) as opened:
            return int(pq.read_metadata(opened).num_rows)
    except FileNotFoundError:
        return None
    except (pa.ArrowInvalid, OSError) as failure:
        logger.warning("%s is damaged (%s); it is computed again.", file, failure)
        return None


def embed_samples(
    encoder: Encoder, samples: Samples, workers: int, normalize: bool, progress: Progress
) -> Features:
    """What the network itself gives for every sample."""
    device, x, done = device_of(encoder), list[Values](), 0
    with closing(sample_batches(samples, workers, lambda: progress(done, len(samples)))) as batches:
        for batch in batches:
            representation = encoder(on_device(batch, device))
            x.append((unit(representation) if normalize else representation).cpu().numpy())
            done += len(representation)
    progress(done, len(samples))
    check_finite(found := np.concatenate(x))
    names = [samples.name(row) for row in range(len(samples))]
    return Features(found, samples.y, names, samples.classes, encoder.checksum())


def shards(
    encoder: Encoder,
    images: Images,
    store: Store | None,
    workers: int,
    normalize: bool,
    progress: Progress,
    firsts: Sequence[int],
) -> Generator[Shard]:
    """The shards of features that begin with the images `firsts`: kept in the store, or computed and kept."""
    missing = {first for first in firsts if store is None or not os.path.exists(store.file(first))}
    done, total = 0 if store is None else store.images(), len(images)
    width, device = encoder.info.features, device_of(encoder)

    def report() -> None:
        progress(min(done, total), total)

    with closing(prepared_batches(images, encoder, workers, sorted(missing), report)) as batches:
        for first in firsts:
            report()
            count = min(SHARD, total - first)
            own: Iterable[Made] = islice(batches, SHARD // BATCH)
            if store is not None and first not in missing:
                if kept := store.read(first, count, width):
                    yield kept
                    continue
                own = prepared_batches(images, encoder, 0, [first], report)
            x, rows, bad = [np.zeros((0, width), dtype=np.float32)], list[int](), Bad()
            for pixels, (good, unreadable) in own:
                if good:
                    representation = encoder(pixels.to(device))
                    x.append((unit(representation) if normalize else representation).cpu().numpy())
                rows += good
                bad += unreadable
                done += len(good) + len(unreadable)
                report()
            shard = np.array(rows, dtype=np.int64), np.concatenate(x), bad
            check_finite(shard[1])
            if store is not None:
                store.keep(first, *shard)
            yield shard


def shared(
    encoder: Encoder,
    images: Images,
    store: Store | None,
    workers: int,
    normalize: bool,
    progress: Progress,
    world: World,
) -> Generator[Shard]:
    """All shards of the images' features in order, on rank 0: each process computes every size-th of them."""
    firsts = range(0, len(images), SHARD)[world.rank :: world.size]
    with closing(shards(encoder, images, store, workers, normalize, progress, firsts)) as own:
        for _ in range(0, len(images), SHARD * world.size):
            with world.telling():
                shard = next(own, None)
            yield from filter(None, world.gather(shard))


def contribute(
    encoder: Encoder, images: Images, *, workers: int, store: str | Path | None, world: World
) -> None:
    """What the other processes of a world do while rank 0 calls `embed` with the same arguments."""
    source = encoder.open(images)
    # Made by rank 0, since naming it takes reading every byte.
    made = None if store is None else world.first(lambda: cache_in(Path(store), encoder, source, False))
    list(shared(encoder, source, made, workers, False, lambda done, total: None, world))


def prepared_batches(
    images: Images,
    encoder: Encoder,
    workers: int,
    firsts: Iterable[int] | None = None,
    poll: Callable[[], object] = never,
) -> Generator[Made]:
    """Images as an encoder is fed them but not normalised: of the shards that begin at `firsts`, or of all.

    Each time: pixels (n, C, h, w) float in [0, 1], the caller's until the next are requested, with which
    images they are, and the unreadable ones with the reasons. `poll` is called between images; it may raise.
    """
    shape = encoder.info.channels, *encoder.info.image_size

    def work(rows: range) -> Made:
        good: list[int] = []
        bad: Bad = []
        result = torch.empty((len(rows), *shape))
        for index in rows:
            if workers == 0:  # else it is called while they are waited for, in this process
                poll()
            part_done()
            try:
                pixels = torch.from_numpy(images.array(index)).permute(2, 0, 1)
            except BadImage as failure:
                bad.append((index, str(failure)))
                continue
            result[len(good)] = encoder.prepare(pixels[None])[0]
            good.append(index)
        return result[: len(good)], (good, bad)

    every = range(len(images))
    parts = (every[first : first + SHARD] for first in (every[::SHARD] if firsts is None else firsts))
    batches = (part[start : start + BATCH] for part in parts for start in range(0, len(part), BATCH))
    return in_workers(work, batches, workers=workers, room=4 * BATCH * prod(shape), poll=poll)


def check_encoder(encoder: object) -> None:
    """Raise ConfigError for anything but an Encoder, which alone knows how its images are prepared."""
    if not isinstance(encoder, Encoder):
        raise ConfigError(
            f"The encoder is a {type(encoder).__name__}; expected run.encoder or what load_encoder gives. "
            "A learner embeds a batch with learner.embed(images)."
        )


def check_bad(images: Images, bad: Bad, strict: bool) -> None:
    """Warn of images that cannot be read; raise DataError when there are no others, or when `strict`."""
    told = ", ".join(f"{printable(images.name(index))} ({reason})" for index, reason in bad[:5])
    told += " ..." if len(bad) > 5 else ""
    if len(bad) == len(images):
        raise DataError(f"None of {images.description} can be read: {told or 'there are none'}.")
    if bad and strict:
        count = f"{len(bad)} of {len(images)}"
        raise DataError(f"{count} images cannot be read: {told}. Every one is needed here.")
    if bad:
        logger.warning("Left out, because unreadable: %d of %s: %s", len(bad), images.description, told)


def cache_in(folder: Path, encoder: Encoder, images: Images, normalize: bool) -> Store | None:
    """The store in a folder for features that may be used years later, by another version of this program.

    It is named after the encoder's tensors, its description and its response to a fixed picture, and after
    every byte of the images; labels are not in it. None for datasets of other libraries, which may change
    without a trace.
    """
    checksum = images.checksum()
    if checksum is None:
        return None
    for left in filter(left_behind, folder.glob("*/.tmp-*")):
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
    same work, and ConfigError when the folder cannot be made.
    """
    if world.size == 1 and len(images) <= SHARD:
        yield None
        return
    folder = out.with_name(f"{out.name}.partial-{_key(encoder, normalize, images.fingerprint())[:16]}")
    check_writable(out.parent, name=folder.name)
    store = Store(folder, optional=False)
    if world.rank > 0:
        world.wait()  # until rank 0 holds it
        yield store
        return
    folder.mkdir(parents=True, exist_ok=True)
    with _lock(folder):
        world.wait()
        try:
            yield store
        except BaseException as failure:
            if isinstance(failure, DataError) or store.images() == 0:
                shutil.rmtree(folder)
            raise
        shutil.rmtree(folder)
    for other in out.parent.glob(f"{glob.escape(out.name)}.partial-*"):  # of other images or encoders
        with suppress(CheckpointError), _lock(other):
            shutil.rmtree(other)


def _lock(folder: Path) -> FileIO:
    """Take the lock of a folder, which ends with the process. Raises CheckpointError when another has it."""
    try:
        return hold(folder / ".lock")
    except BlockingIOError as failure:
        again = "Wait for it, or choose another --out."
        raise CheckpointError(f"Another process writes to {folder}. {again}") from failure
    except OSError as failure:
        raise CheckpointError(f"{folder} cannot be used: {failure.strerror}.") from failure


def _key(encoder: Encoder, normalize: bool, images: str) -> str:
    """Hexadecimal, of the encoder, how images are worked on, and what names them."""
    work = {"format": FORMAT, "images": images, "batch": BATCH, "shard": SHARD, "normalize": normalize}
    return digest(encoder.tensors(), {**asdict(encoder.info), **work})

"""Images through an encoder: the matrix that everything after training starts from."""

import logging
import tempfile
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from itertools import islice
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from byol.data.decode import BadImage
from byol.data.images import Images
from byol.data.workers import made, never
from byol.disk import writing
from byol.encoders.encoder import Encoder, device_of
from byol.errors import ConfigError, DataError, printable
from byol.features.features import Features as Features, Rows, Values, check_finite, unit
from byol.features.store import BATCH, SHARD, Shard, Store, cache_in, shard_numbers

logger = logging.getLogger("byol")


def embed(
    encoder: Encoder,
    images: Any,
    *,
    workers: int = 0,
    normalize: bool = False,
    strict: bool = False,
    store: Store | str | Path | None = None,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> Features:
    """The representation of every image, on the encoder's device, in the images' order.

    `images` is anything `open_images` takes. `normalize` scales every row to length 1. Unreadable images
    are left out with a warning that names them; with `strict` they raise DataError, as they do when none
    can be read. `store` is a folder that features are kept in, and found in the next time as long as the
    encoder and every byte of the images stay the same. `progress` is told again and again how many images
    of how many are done; it may raise, to stop.
    """
    check_encoder(encoder)
    if workers < 0:
        raise ConfigError(f"workers is {workers}; expected 0 or more.")
    source = encoder.open(images)
    if store is not None and not isinstance(store, Store):
        store = cache_in(Path(store), encoder, source, normalize)
    numbers = shard_numbers(source)
    computed = compute(
        encoder, source, numbers, store, workers=workers, normalize=normalize, progress=progress
    )
    rows: list[Rows] = []
    bad: list[tuple[int, str]] = []

    def parts() -> Iterator[Values]:
        for number in numbers:
            shard = computed.pop(number, None)
            if shard is None:
                assert store is not None  # which has it
                shard = store.read(number, len(source), encoder.info.features)
                if shard is None:  # damaged
                    shard = compute(encoder, source, [number], None, normalize=normalize)[number]
                    store.keep(shard)
            rows.append(shard.rows)
            bad.extend(shard.bad)
            yield shard.x

    if store is None or store.optional:
        held = [*parts()]
        check_bad(source, bad, strict=strict)
        x = np.concatenate(held)
    else:  # in a file that is mapped, so that the memory need not hold it
        with writing(store.folder), tempfile.TemporaryFile(dir=store.folder.parent) as file:
            for part in parts():  # written, not mapped: on a full disk a mapping kills the process
                file.write(part.data)
            check_bad(source, bad, strict=strict)
            file.flush()
            x = np.memmap(file, np.float32, "r", shape=(sum(map(len, rows)), encoder.info.features))
    chosen = np.concatenate(rows)
    labels = source.label_matrix if source.labels is None else source.labels
    names = [source.name(row) for row in chosen.tolist()]
    return Features(x, None if labels is None else labels[chosen], names, source.classes, encoder.checksum())


def compute(
    encoder: Encoder,
    images: Images,
    numbers: Sequence[int],
    store: Store | None,
    *,
    workers: int = 0,
    normalize: bool = False,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> dict[int, Shard]:
    """Compute those of the images' shards that the store lacks. Returns the ones that it does not take."""
    missing = [number for number in numbers if store is None or not store.has(number)]
    firsts = [first for n in missing for first in range(len(images))[n * SHARD : (n + 1) * SHARD : BATCH]]
    done, total = 0 if store is None else store.images(), len(images)
    device, unkept = device_of(encoder), {}

    def report() -> None:
        progress(min(done, total), total)

    report()
    with closing(prepared_batches(images, encoder, workers, firsts, report)) as batches:
        for number in missing:
            parts, rows, bad = [], [], []
            for indices, pixels, unreadable in islice(batches, SHARD // BATCH):
                if indices:
                    representation = encoder(pixels.to(device))
                    parts.append((unit(representation) if normalize else representation).cpu().numpy())
                rows += indices
                bad += unreadable
                done += len(indices) + len(unreadable)
                report()
            x = np.concatenate(parts) if parts else np.zeros((0, encoder.info.features), dtype=np.float32)
            check_finite(x)
            shard = Shard(number, np.array(rows, dtype=np.int64), x, bad)
            if store is None or not store.keep(shard):
                unkept[number] = shard
    return unkept


Prepared = tuple[list[int], Tensor, list[tuple[int, str]]]


def prepared_batches(
    images: Images,
    encoder: Encoder,
    workers: int,
    firsts: Iterable[int] | None = None,
    poll: Callable[[], object] = never,
) -> Generator[Prepared]:
    """Images as an encoder is fed them but not normalised: batches that begin at `firsts`, or all in order.

    Each time: which images, their pixels (n, C, h, w) float in [0, 1], the caller's until the next are asked
    for, and the unreadable ones with the reasons. `poll` is called between images; it may raise, to stop.
    """
    shape = encoder.info.channels, *encoder.info.image_size

    def work(rows: range) -> tuple[Tensor, tuple[list[int], list[tuple[int, str]]]]:
        good: list[int] = []
        bad: list[tuple[int, str]] = []
        result = torch.empty((len(rows), *shape))
        for index in rows:
            if workers == 0:  # else it is called while they are waited for, in this process
                poll()
            try:
                pixels = torch.from_numpy(images.array(index)).permute(2, 0, 1)
            except BadImage as failure:
                bad.append((index, str(failure)))
                continue
            result[len(good)] = encoder.prepare(pixels[None])[0]
            good.append(index)
        return result[: len(good)], (good, bad)

    starts = range(0, len(images), BATCH) if firsts is None else firsts
    batches = (range(len(images))[first : first + BATCH] for first in starts)
    with closing(made(work, batches, workers=workers, room=4 * BATCH * prod(shape), poll=poll)) as found:
        for pixels, (good, bad) in found:
            yield good, pixels, bad


def check_encoder(encoder: object) -> None:
    """Raise ConfigError for anything but an Encoder, which alone knows how its images are prepared."""
    if not isinstance(encoder, Encoder):
        raise ConfigError(
            f"The encoder is a {type(encoder).__name__}; expected run.encoder or what load_encoder gives. "
            "A learner embeds a batch with learner.embed(images)."
        )


def check_bad(images: Images, bad: list[tuple[int, str]], *, strict: bool) -> None:
    """Warn of images that cannot be read; raise DataError when there are no others, or when `strict`."""
    told = [f"{printable(images.name(index))} ({reason})" for index, reason in bad[:5]]
    if len(bad) == len(images):
        raise DataError(f"None of {images.description} can be read: {told[0] if told else 'there are none'}.")
    listing = ", ".join(told) + (" ..." if len(bad) > len(told) else "")
    if bad and strict:
        raise DataError(
            f"{len(bad)} of {len(images)} images cannot be read: {listing}. Every one is needed here."
        )
    if bad:
        logger.warning("Left out, because unreadable: %d of %s: %s", len(bad), images.description, listing)

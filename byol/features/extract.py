"""Images through an encoder: the matrix that everything after training starts from."""

import logging
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from byol.data.decode import BadImage
from byol.data.sources import Images, open_images, printable
from byol.data.workers import arriving, loader
from byol.errors import ConfigError, DataError
from byol.features.files import Features as Features
from byol.features.files import Rows, Values
from byol.weights.files import Encoder

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


class _Prepared(torch.utils.data.Dataset[tuple[int, Tensor | str]]):
    """Each image as the encoder is fed it, or why it cannot be read."""

    def __init__(self, images: Images, encoder: Encoder) -> None:
        self.images, self.channels, self.size = images, encoder.info.channels, encoder.info.image_size
        self.prepare = encoder.prepare

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[int, Tensor | str]:
        try:
            pixels = torch.from_numpy(np.ascontiguousarray(self.images.array(index)))
        except BadImage as failure:
            return index, str(failure)
        return index, self.prepare(pixels.permute(2, 0, 1)[None])[0]


def _gathered(samples: list[tuple[int, Tensor | str]]) -> tuple[list[int], Tensor | None, list[tuple[int, str]]]:
    """What a worker sends: which images, their pixels (n, C, h, w), and the unreadable ones with the reasons.

    One tensor, because every tensor that travels apart holds a file open until it is used.
    """
    good = [(index, pixels) for index, pixels in samples if isinstance(pixels, Tensor)]
    pixels = torch.stack([pixels for _, pixels in good]) if good else None
    return [index for index, _ in good], pixels, [(index, why) for index, why in samples if isinstance(why, str)]


def check_encoder(encoder: object) -> None:
    """Raise ConfigError for anything but an Encoder, which alone knows how its images are prepared."""
    if not isinstance(encoder, Encoder):
        raise ConfigError(
            f"The encoder is a {type(encoder).__name__}; expected what load_encoder(path) gives, or run.encoder. "
            "A learner embeds a batch with learner.embed(images)."
        )


Prepared = tuple[list[int], Tensor | None, list[tuple[int, str]]]


def prepared_batches(
    images: Images, encoder: Encoder, workers: int, firsts: Iterable[int] | None = None
) -> Generator[Prepared]:
    """Images as an encoder is fed them but not normalised: batches that begin at `firsts`, or all in order.

    Each time: which images, their pixels (n, C, h, w) float in [0, 1] (None when none can be read), and the unreadable ones
    with the reasons.
    """
    starts = range(0, len(images), BATCH) if firsts is None else firsts
    prepared: torch.utils.data.DataLoader[Any] = loader(
        _Prepared(images, encoder),
        workers=workers,
        batch_sampler=[range(first, min(first + BATCH, len(images))) for first in starts],
        collate_fn=_gathered,
        generator=torch.Generator(),  # else the loader draws a seed from torch's own random state
    )
    yield from arriving(prepared)


def embed(encoder: Encoder, images: Any, *, workers: int = 0, normalize: bool = False, strict: bool = False) -> Features:
    """The representation of every image, on the encoder's device, in the images' order.

    `images` is anything `open_images` takes. `normalize` scales every row to length 1. Unreadable images are left out with
    a warning that names them; with `strict` they raise DataError, as they do when none can be read.
    """
    source = images_for(encoder, images, workers)
    return features_of(encoder, source, *computed(encoder, source, workers=workers, normalize=normalize, strict=strict))


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
    source = images if isinstance(images, Images) else open_images(images, channels=encoder.info.channels)
    check_channels(encoder, source)
    return source


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


def embedded(encoder: Encoder, images: Images, numbers: Sequence[int], *, workers: int, normalize: bool) -> Iterator[Shard]:
    """Some of the images' shards, in the given order."""
    device = device_of(encoder)
    firsts = [first for number in numbers for first in range(number * SHARD * BATCH, len(images), BATCH)[:SHARD]]
    rows: list[int] = []
    parts: list[Values] = []
    bad: list[tuple[int, str]] = []
    for first, (indices, pixels, unreadable) in zip(firsts, prepared_batches(images, encoder, workers, firsts), strict=True):
        bad += unreadable
        if pixels is not None:
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
        raise DataError(f"{len(bad)} of {len(images)} images cannot be read: {listing}. Every one is needed here.")
    logger.warning("Left out, because unreadable: %d of %s: %s", len(bad), images.description, listing)


def features_of(encoder: Encoder, images: Images, rows: Rows, x: Values) -> Features:
    """The matrix of an encoder with the labels and names of the images that its rows are of."""
    labels = images.label_matrix if images.labels is None else images.labels
    names = [images.name(row) for row in rows.tolist()]
    return Features(x, None if labels is None else labels[rows], names, images.classes, encoder.checksum())


def device_of(encoder: Encoder) -> torch.device:
    """Where an encoder's tensors are; the CPU for one without any, such as raw pixels."""
    return next((tensor.device for tensor in encoder.state_dict().values()), torch.device("cpu"))

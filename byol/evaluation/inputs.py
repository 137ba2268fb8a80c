"""What a protocol gets and gives: a train and a test split, and predictions for the test images."""

import logging
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from byol.data.decode import BadImage
from byol.data.images import Images, open_images
from byol.data.labels import Labels
from byol.data.readers.reader import evenly_spaced
from byol.encoders.encoder import Encoder, device_of
from byol.errors import ConfigError, DataError
from byol.features.embed import check_encoder, embed
from byol.features.features import Features, blocks
from byol.world import pick_device

Array = np.ndarray[Any, Any]
Source = Features | Images
FEATURES = (".npz", ".parquet", ".safetensors")  # files that may hold features with labels
logger = logging.getLogger("byol")


@dataclass(frozen=True)
class Split:
    """Images or features, with labels, to learn from or to score; features of images once a protocol uses them."""

    source: Source
    encoder: Encoder | None = None  # None for features
    device: torch.device | None = None  # where features are worked on; None is the CPU
    workers: int = 0
    cache: Path | None = None  # where features of images are kept

    @property
    def images(self) -> Images:
        """The images, for a protocol that works on them: a task has refused features then."""
        assert isinstance(self.source, Images)
        return self.source

    @property
    def labels(self) -> Array:
        """int64 (N,), or (N, classes) of 0 and 1."""
        labels = labels_of(self.source)
        assert labels is not None
        return labels

    @property
    def classes(self) -> int:
        """How many classes there are: those that occur, and of multi-label images all."""
        return self.labels.shape[1] if self.labels.ndim == 2 else len(np.unique(self.labels))

    @cached_property
    def features(self) -> Features:
        """The representations of the images that can be read, with their labels; computed when first used."""
        if isinstance(self.source, Features):
            return self.source
        assert self.encoder is not None
        return embed(self.encoder, self.source, store=self.cache, workers=self.workers)

    @property
    def tensors(self) -> tuple[Tensor, Tensor]:
        """The features and their labels."""
        found = self.features
        assert found.y is not None
        return tensor_of(found.x), tensor_of(found.y)

    @property
    def checksum(self) -> str:
        """Of the encoder, as in its file."""
        own = self.source.encoder_checksum if isinstance(self.source, Features) else None
        return self.encoder.checksum() if self.encoder is not None else own or "unknown"


def tensor_of(array: Array) -> Tensor:
    """An array as a tensor to read from, without a copy where it is in one piece."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that a mapped file cannot be written to
        return torch.from_numpy(np.ascontiguousarray(array))


@dataclass(frozen=True)
class Predictions:
    """What a classifier says of the test images that could be read."""

    classes: Array  # int64 (Q, up to 5) the likeliest first, -1 for none; multi-label: float (Q, classes), a score each
    labels: Array | None  # of the same images; None where they carry none, and then there is no score
    settings: dict[str, Any]  # requested and chosen
    train_images: int  # learned from, those that settings were chosen on included


def open_splits(
    encoder: Encoder | None,
    train: Any,
    test: Any,
    *,
    device: str | None = None,
    workers: int = 0,
    cache: str | Path | None = None,
) -> tuple[Split, Split]:
    """Both sides opened, their labels numbers of the same classes. Raises ConfigError or DataError before any work.

    Each is Features, a file of them, or what `open_images` takes; without an encoder only features will do, which are
    worked on by the device.
    """
    if encoder is not None:
        check_encoder(encoder)
    learned = opened(train, "train", encoder)
    sources = same_classes(learned, opened(test, "test", encoder, learned.classes))
    learnable_labels(sources[0])
    checksum, width = (None, None) if encoder is None else (encoder.checksum(), encoder.info.features)
    for role, source in zip(("train", "test"), sources, strict=True):
        if isinstance(source, Features):
            checksum, width = checksum or source.encoder_checksum, width or source.x.shape[1]
            if source.encoder_checksum not in (None, checksum) or source.x.shape[1] != width:
                raise ConfigError(
                    f"The {source.x.shape[1]}-dimensional features given as {role} are of another encoder; expected those of "
                    f"one, {width}-dimensional. Give the images, or features of the same encoder."
                )
    where = pick_device(device) if encoder is None else device_of(encoder)
    folder = None if cache is None else Path(cache)
    first, second = (Split(source, encoder, where, workers, folder) for source in sources)
    return first, second


def opened(given: Any, role: str, encoder: Encoder | None, classes: Sequence[str] | None = None) -> Source:
    """What was given as train or test, with labels.

    A folder that holds nothing but one folder named as one of `classes` holds images of this class.
    """
    source: Any = given
    path = Path(given).expanduser() if isinstance(given, str | Path) else None
    if path is not None and path.suffix in FEATURES:
        try:
            source = Features.load(path)
        except DataError:
            if encoder is None or path.suffix == ".safetensors":
                raise  # else it may be a file of images
    if not isinstance(source, Features):
        if encoder is None:
            what = given if path else f"an object of type {type(given).__name__}"
            raise ConfigError(
                f"Without an encoder {role} must be features with labels ({', '.join(FEATURES)}); got {what}. "
                "Name the encoder, or give what `byol embed` wrote."
            )
        source = encoder.open(source)
        if labels_of(source) is None and path is not None and classes:
            source = of_one_class(source, path, classes)
    if labels_of(source) is None:
        raise DataError(
            f"{source.description} given as {role} carry no labels. Expected a folder with one folder per class, "
            "parquet with a label column, or an .npz with y."
        )
    found: Source = source
    return found


def of_one_class(images: Images, folder: Path, classes: Sequence[str]) -> Images:
    """The images of a folder that holds nothing but the folder of a class, with their labels; others as they are."""
    ends = [images.name(index).partition("/") for index in (0, len(images) - 1)]  # of names in order
    if not os.path.isdir(folder) or ends[0][0] != ends[1][0] or not ends[0][1] or ends[0][0] not in classes:
        return images
    return open_images(images, labels=[ends[0][0]] * len(images))


def labels_of(source: Source) -> Array | None:
    """The labels of images or features, int64 (N,) or (N, classes), where there are any."""
    if isinstance(source, Features):
        return source.y
    return source.label_matrix if source.labels is None else source.labels


def learnable_labels(source: Source) -> Array:
    """The labels to learn from. Raises DataError where there are none, or those of one class."""
    labels = labels_of(source)
    if labels is None:
        raise DataError(
            f"{source.description} carry no labels to learn from. Give images whose classes are known."
        )
    if labels.ndim == 1 and len(np.unique(labels)) < 2:
        raise DataError(
            f"Only one class occurs among {source.description}; expected at least two to learn from."
        )
    return labels


def same_classes(train: Source, test: Source) -> tuple[Source, Source]:
    """Both with the same class numbers, matched by the classes' names where both have names, train's first.

    A class may be missing from either side: two folders that lack different classes number theirs differently.
    """
    ours, theirs = labels_of(train), labels_of(test)
    assert ours is not None
    assert theirs is not None
    if ours.ndim != theirs.ndim:
        raise DataError(
            "One of train and test is multi-label, the other not. Give labels of one kind on both sides."
        )
    if train.classes is None or test.classes is None or train.classes == test.classes:
        if ours.ndim == 2 and ours.shape[1] != theirs.shape[1]:
            raise DataError(
                f"Train has {ours.shape[1]} columns of labels and test {theirs.shape[1]}; expected the same classes."
            )
        return train, test
    if not set(train.classes) & set(test.classes):
        raise DataError(
            f"Train and test share no class: train has {', '.join(train.classes[:3])} ..., "
            f"test {', '.join(test.classes[:3])} ... Expected the same class names on both sides."
        )
    known = set(train.classes)
    union = (*train.classes, *(name for name in test.classes if name not in known))
    return with_classes(train, union), with_classes(test, union)


def with_classes(source: Source, classes: tuple[str, ...]) -> Source:
    """The same with its labels numbered by other names, which hold all of its own."""
    if isinstance(source, Images):
        return source.with_classes(classes)
    assert source.y is not None
    assert source.classes is not None
    return replace(source, y=Labels(source.y, source.classes).renumbered(classes).values, classes=classes)


def overlap(train: Source, test: Source) -> int:
    """How many of the test images are train images too, as far as that is cheap to see; it is warned of."""
    if isinstance(train, Features) and isinstance(test, Features):
        count = int(np.isin(row_keys(test), row_keys(train)).sum())
    elif isinstance(train, Images) and isinstance(test, Images):
        count = len(test) if train.fingerprint() == test.fingerprint() and alike(train, test) else 0
    else:
        return 0
    if count:
        logger.warning(
            "%s of the %s test images are train images too, so these scores %s. Give two sets that share no image.",
            f"{count:,}", f"{len(test):,}",
            "are meaningless: they say nothing of other images" if count == len(test) else "come out too high",
        )  # fmt: skip
    return count


def row_keys(features: Features) -> Array:
    """A number for each row, uint64 (N,): equal for equal rows, and all but certainly for no others."""
    weights = np.random.default_rng(0).integers(2**64, size=features.x.shape[1], dtype=np.uint64)
    return np.concatenate([(x.view(np.uint32) * weights).sum(axis=1) for _, x in blocks(features.x)])


def alike(train: Images, test: Images) -> bool:
    """Whether a few images are the same on both sides: of a dataset that draws them at random only these tell."""
    for index in evenly_spaced(min(len(train), len(test)), 8):
        try:
            if not np.array_equal(train.array(index), test.array(index)):
                return False
        except BadImage:
            continue
    return True

"""What a protocol gets and gives: a train and a test split, and predictions for the test images."""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

from byol.data.decode import BadImage
from byol.data.images import Images, open_images
from byol.data.labels import Labels
from byol.data.readers.dataset import Items
from byol.data.readers.reader import evenly_spaced
from byol.disk import from_home
from byol.encoders.encoder import Encoder
from byol.errors import ByolError, ConfigError, DataError, printable
from byol.evaluation.classifier import Classifier
from byol.evaluation.subsets import train_test_split
from byol.features.embed import embed
from byol.features.features import Features
from byol.features.formats import Array

Split = Features | Images  # to learn from or to score
FEATURES = (".npz", ".parquet", ".safetensors")  # files that may hold features with labels
MOST_COMPARED = 200_000  # images of both sides of which every byte is read to see whether some are the same
logger = logging.getLogger("byol")


@dataclass(frozen=True)
class Predictions:
    """What a classifier says of the test images that could be read."""

    classes: Array  # int64 (Q, up to 5), the likeliest first, -1 for none; multi-label: scores (Q, classes)
    labels: Array | None  # of the same images; None where they carry none, and then there is no score
    settings: dict[str, Any]  # requested and chosen
    train_images: int  # learned from, those that settings were chosen on included
    classifier: Classifier | None = None  # that said so; None for features without an encoder


def opened(given: Any, role: str, encoder: Encoder | None, classes: Sequence[str] | None = None) -> Split:
    """What was given as train or test: Features, a file of them, or with an encoder what `open_images` takes.

    A folder that holds nothing but one folder named as one of `classes` holds images of this class.
    """
    path = from_home(given) if isinstance(given, str | Path) else None
    if path is not None and path.suffix in FEATURES:
        try:
            given = Features.load(path)
        except ByolError:
            if encoder is None or path.suffix == ".safetensors":
                raise  # else it may be a file of images, whose reader says what it lacks
    if isinstance(given, Features):
        return given
    if encoder is None:
        raise ConfigError(
            f"Without an encoder {role} must be features with labels ({', '.join(FEATURES)}); got "
            f"{path or type(given).__name__}. Name the encoder, or give what `byol embed` wrote."
        )
    if not encoder.info.takes_images:
        return embed(encoder, given)
    images = encoder.open(given)
    if images.classes is None and classes and path is not None and os.path.isdir(path):
        [first, last] = (images.name(index).split("/")[:-1][:1] for index in (0, len(images) - 1))
        if first == last and first and first[0] in classes:  # names are in order
            return open_images(images, labels=first * len(images))
    return images


def share_of(test: Any) -> float | None:
    """The share of the labelled images to score where `test` is a number, as in 0.3; None for images.

    Raises ConfigError for a number that is not strictly between 0 and 1.
    """
    try:
        number = float(test) if isinstance(test, str | Real) else None
    except ValueError:
        return None
    if number is not None and not 0 < number < 1:
        raise ConfigError(
            f"test is {test}; expected a share above 0 and below 1, such as 0.3, or labelled images (a "
            f"folder of this name is ./{test})."
        )
    return number


def divided(split: Split, share: float, seed: int) -> tuple[tuple[Split, Split], str]:
    """A part to learn from and a part to score, so large a share of every class, and what was done in words.

    Raises DataError where no class has an image for each side.
    """
    labels = labels_of(split)
    rows = train_test_split(labels, share, seed)
    if not len(rows[1]):
        raise DataError(
            f"No class of {split.description} has two images, one to learn from and one to score. Give test "
            "images of their own."
        )
    counts = labels.sum(axis=0) if labels.ndim == 2 else np.bincount(labels)
    single = int((counts == 1).sum())
    words = (
        f"{len(rows[1]):,} of {split.description} are scored, {share:g} of every class drawn from seed "
        f"{seed}; {len(rows[0]):,} are learned from"
    )
    if single:
        words += f", with the only image of {single} {'class' if single == 1 else 'classes'}"
    return (part_of(split, rows[0]), part_of(split, rows[1])), words


def part_of(split: Split, rows: Array) -> Split:
    """Some of the labelled images, or of their features."""
    if isinstance(split, Images):
        return split.subset(rows)
    names = [split.names[row] for row in rows] if split.names else []
    return replace(split, x=split.x[rows], y=labels_of(split)[rows], names=names)


def labels_of(split: Split, role: str = "train", *, learned: bool = False) -> Array:
    """The labels, int64 (N,) or (N, classes) of 0 and 1.

    Raises DataError where there are none, and with `learned` where all are of one class.
    """
    labels = split.y
    if labels is None:
        raise DataError(
            f"{split.description} given as {role} carry no labels. Expected a folder with one folder per "
            "class, a .csv of path,label, parquet with a label column, or an .npz with y."
        )
    if learned and labels.ndim == 1 and len(np.unique(labels)) < 2:
        raise DataError(f"Only one class occurs among {split.description}; expected at least two.")
    return labels


def checksum_of(encoder: Encoder | None, train: Split, test: Split) -> str | None:
    """The checksum of the encoder, as far as it is known. Raises ConfigError for features of another one."""
    checksum, width = (None, None) if encoder is None else (encoder.checksum(), encoder.info.features)
    for role, split in (("train", train), ("test", test)):
        if isinstance(split, Features):
            own = split.x.shape[1]
            checksum, width = checksum or split.encoder_checksum, width or own
            if split.encoder_checksum not in (None, checksum) or own != width:
                raise ConfigError(
                    f"The {own}-dimensional features given as {role} are of another encoder; expected "
                    f"{width}-dimensional ones. Give the images, or features of one encoder."
                )
    return checksum


def same_classes(train: Split, test: Split) -> tuple[Split, Split]:
    """Both with the same class numbers, matched by the classes' names where both have names.

    A class may be missing from either side: folders that lack different classes number theirs differently.
    """
    widths = [labels.shape[1:] for labels in (labels_of(train), labels_of(test, "test"))]
    if widths[0] != widths[1] and not (all(widths) and train.classes and test.classes):
        columns = [width[0] if width else 0 for width in widths]
        raise DataError(
            f"Labels of train have {columns[0]} columns, those of test {columns[1]}; expected the same (0 is "
            "one label an image)."
        )
    if train.classes is None or test.classes is None or train.classes == test.classes:
        return train, test
    if not set(train.classes) & set(test.classes):
        raise DataError(
            f"Train and test share no class: train has {', '.join(train.classes[:3])} ..., "
            f"test {', '.join(test.classes[:3])} ... Expected the same class names on both sides."
        )
    union = tuple(dict.fromkeys((*train.classes, *test.classes)))
    return with_classes(train, union), with_classes(test, union)


def warn_of_untaught(train: Split, test: Split) -> None:
    """Name the classes of test images of which train has none: no answer to these can be right."""
    learned, asked = labels_of(train), labels_of(test, "test")
    if asked.ndim == 1:
        numbers = np.setdiff1d(asked, learned)
        count = int(np.isin(asked, numbers).sum())
    else:
        numbers = np.flatnonzero(asked.any(axis=0) & ~learned.any(axis=0))
        count = int(asked[:, numbers].any(axis=1).sum())
    if len(numbers):
        names = [printable(test.classes[n]) if test.classes else str(n) for n in numbers[:3].tolist()]
        more = ", ..." if len(numbers) > 3 else ""
        logger.warning(
            f"Train has no image of {len(numbers):,} classes of test ({', '.join(names)}{more}), to which "
            f"{count:,} of its {len(asked):,} images belong: these cannot be answered right."
        )


def with_classes(split: Split, classes: tuple[str, ...]) -> Split:
    """The same with its labels numbered by other names, which hold all of its own."""
    if isinstance(split, Images):
        return split.with_classes(classes)
    labels = Labels(labels_of(split), split.classes or ()).renumbered(classes)
    return replace(split, y=labels.values, classes=classes)


def overlap(train: Split, test: Split) -> int:
    """How many of the test images are train images too, as far as that is cheap to see; it is warned of."""
    if type(train) is not type(test):
        return 0
    slow = any(isinstance(side, Images) and isinstance(side.reader, Items) for side in (train, test))
    sampled = slow or (isinstance(train, Images) and len(train) + len(test) > MOST_COMPARED)
    first, second = (digests(side, 8 if sampled else len(side)) for side in (train, test))
    if sampled:
        count = len(test) if first == second and len(train) == len(test) else 0
    else:
        learned = set(first)
        count = sum(digest in learned for digest in second)
    if count:
        words = (
            "%d of the %d test images are train images too, so these scores %s. Give sets that share none."
        )
        meant = "mean nothing" if count == len(test) else "come out too high"
        logger.warning(words, count, len(test), meant)
    return count


def digests(split: Split, most: int) -> list[int]:
    """A number for each row of features, or for what each of so many images is read from, if it can be."""
    if isinstance(split, Features):
        return [hash(row.tobytes()) for row in split.x]
    found = []
    for row in split.rows[evenly_spaced(len(split), most)].tolist():
        try:
            value = split.reader.read(row)
        except BadImage:
            continue
        found.append(hash(value if isinstance(value, bytes) else np.asarray(value).tobytes()))
    split.release()
    return found

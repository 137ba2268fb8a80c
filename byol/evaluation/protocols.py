"""Judge an encoder by what its features make easy. Nothing is ever chosen on test images."""

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from byol.data.sources import Images, open_images
from byol.errors import ConfigError, DataError, did_you_mean
from byol.evaluation import linear
from byol.evaluation.knn import check_votes, knn_correct
from byol.evaluation.metrics import interval, top1
from byol.features.extract import Features, check_encoder, embed
from byol.weights.files import Encoder

PROTOCOLS = ("knn", "linear")
logger = logging.getLogger("byol")


@dataclass(frozen=True)
class Score:
    """How an encoder did in one protocol."""

    protocol: str
    top1: float  # share of test images classified right
    low: float  # 95 % interval of top1 over the test images
    high: float
    settings: dict[str, Any]
    train_images: int
    test_images: int
    classes: int
    seed: int
    seconds: float  # of the protocol, without computing the features


def evaluate(
    encoder: Encoder,
    *,
    train: Any,
    test: Any,
    protocols: str | Sequence[str] = PROTOCOLS,
    k: int = 20,
    temperature: float = 0.07,
    seed: int = 0,
    workers: int = 0,
) -> dict[str, Score]:
    """Score an encoder on labelled images: `train` is learned from, `test` is scored.

    Both are Features, or what `open_images` takes. Raises ConfigError for an unknown protocol, DataError without labels.
    """
    protocols = (protocols,) if isinstance(protocols, str) else protocols
    if not protocols:
        raise ConfigError(f"No protocol was given. There are: {', '.join(PROTOCOLS)}.")
    check_votes(k, temperature)
    check_encoder(encoder)
    for name in protocols:
        if name not in PROTOCOLS:
            raise ConfigError(
                f"There is no protocol {name!r}.{did_you_mean(name, PROTOCOLS)} There are: {', '.join(PROTOCOLS)}."
            )
    sources = {"train": labelled(train, "train", encoder), "test": labelled(test, "test", encoder)}
    bank, queries = (s if isinstance(s, Features) else embed(encoder, s, workers=workers) for s in sources.values())
    if bank.x.shape[1] != queries.x.shape[1]:
        raise DataError(
            f"The features are {bank.x.shape[1]} numbers an image in train and {queries.x.shape[1]} in test; "
            "expected both from the same encoder."
        )
    warn_of_same_images(sources["train"], sources["test"])
    bank, queries = same_classes(bank, queries)
    scores = {}
    for name in protocols:
        started = time.perf_counter()
        if name == "knn":
            correct = knn_correct(bank, queries, k=k, temperature=temperature)
            settings: dict[str, Any] = {"k": k, "temperature": temperature, "similarity": "cosine"}
        else:
            correct, settings = linear_correct(bank, queries, seed)
        seconds = time.perf_counter() - started
        scores[name] = scored(name, correct, bank, settings, seed, seconds)
    return scores


def scored(
    protocol: str,
    correct: np.ndarray[Any, np.dtype[np.bool_]],
    train: Features,
    settings: dict[str, Any],
    seed: int,
    seconds: float,
) -> Score:
    """A Score from the answers on the test images."""
    assert train.y is not None
    classes = len(train.classes) if train.classes else int(train.y.max()) + 1
    low, high = interval(correct)
    return Score(protocol, top1(correct), low, high, settings, len(train.x), len(correct), classes, seed, seconds)


def linear_correct(train: Features, test: Features, seed: int) -> tuple[np.ndarray[Any, np.dtype[np.bool_]], dict[str, Any]]:
    """Which test images a logistic regression gets right, and its settings."""
    assert train.y is not None
    y = torch.from_numpy(train.y)
    classifier = linear.fit(torch.from_numpy(train.x), y, int(y.max()) + 1, seed=seed)
    settings = {"solver": "L-BFGS", "l2": classifier.l2, "l2_values": len(linear.L2), "held_out": linear.HELD_OUT}
    return np.asarray(classifier(torch.from_numpy(test.x)).numpy() == test.y), settings


def labelled(images: Any, role: str, encoder: Encoder) -> Features | Images:
    """The images of a role, opened; raises DataError before any work when they carry no labels."""
    opened: Features | Images = images
    if not isinstance(images, Features | Images):
        opened = open_images(images, channels=encoder.info.channels)
    labels = opened.y if isinstance(opened, Features) else opened.labels
    if labels is None:
        what = opened.description if isinstance(opened, Images) else "The features"
        raise DataError(
            f"{what} given as {role} carry no labels. Expected a folder with one folder per class, "
            "parquet with a label column, or an .npz with y."
        )
    return opened


def warn_of_same_images(train: Features | Images, test: Features | Images) -> None:
    """Say so when what is scored is what was learned from: each image is then its own nearest neighbour."""
    if isinstance(train, Images) and isinstance(test, Images):
        same = train.fingerprint() == test.fingerprint()
    else:
        same = isinstance(train, Features) and isinstance(test, Features) and np.array_equal(train.x, test.x)
    if same:
        logger.warning(
            "Train and test are the same images, so these scores are meaningless: they say nothing of images that were not "
            "learned from. Give two different sets."
        )


def same_classes(train: Features, test: Features) -> tuple[Features, Features]:
    """Both with the train images' class numbers, matched by the classes' names where both have names.

    A class may be missing from either side: two folders that lack different classes number theirs differently.
    """
    assert test.y is not None
    if train.classes is None or test.classes is None or train.classes == test.classes:
        return train, test
    union = [*train.classes, *(name for name in test.classes if name not in train.classes)]
    if not set(train.classes) & set(test.classes):
        raise DataError(
            f"Train and test share no class: train has {', '.join(train.classes[:3])} ..., "
            f"test {', '.join(test.classes[:3])} ... Expected the same class names on both sides."
        )
    number = np.array([union.index(name) for name in test.classes], dtype=np.int64)
    return train, replace(test, y=number[test.y], classes=tuple(union))


def write_scores(scores: dict[str, Score], path: str | Path) -> None:
    """Append one JSON line per score."""
    with Path(path).open("a") as file:
        for score in scores.values():
            file.write(json.dumps(asdict(score)) + "\n")


def score_table(scores: dict[str, Score]) -> str:
    """Scores for people, in percent."""
    lines = ["protocol      top-1     95 % interval   settings"]
    for score in scores.values():
        values = {name: f"{v:.3g}" if isinstance(v, float) else v for name, v in score.settings.items()}
        settings = ", ".join(f"{name} {value}" for name, value in values.items())
        lines.append(
            f"{score.protocol:<10} {100 * score.top1:6.2f} %   {100 * score.low:5.2f} to {100 * score.high:5.2f}   {settings}"
        )
    first = next(iter(scores.values()), None)
    if first is not None:
        lines.append(f"{first.test_images:,} test images of {first.classes} classes, learned from {first.train_images:,}")
    return "\n".join(lines)

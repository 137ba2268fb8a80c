"""Judge an encoder by what its features make easy. Nothing is ever chosen on test images."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from byol.encoders.encoder import Encoder, device_of
from byol.errors import ConfigError, DataError, did_you_mean
from byol.evaluation import linear
from byol.evaluation.finetune import FINETUNE, LINEAR_SGD, SEMI, train_classifier
from byol.evaluation.inputs import (
    TRAINING,
    Answers,
    EvaluationConfig,
    Given,
    labelled,
    same_classes,
    same_images,
)
from byol.evaluation.knn import knn_votes
from byol.evaluation.metrics import measure, metric_for
from byol.evaluation.score import Score, score_of
from byol.evaluation.sgd import ClassifierConfig
from byol.evaluation.subsets import Amount, few
from byol.features.embed import Features, check_encoder
from byol.method.draws import check_seed

logger = logging.getLogger("byol")


@dataclass(frozen=True)
class Protocol:
    """A way to judge an encoder."""

    run: Callable[
        [Encoder, Given, Given, EvaluationConfig, int], dict[str, Answers]
    ]  # train, test, settings, seed
    random: bool  # whether another seed may give another score
    on_images: bool = False  # whether it works on the images, which it augments, and not on features
    tunes: bool = False  # whether it trains the encoder too
    amount: Amount | None = None  # of labels that it learns from; None is all
    settings: tuple[str, ...] = ()  # of `EvaluationConfig`, that it uses besides the metric


def knn(
    encoder: Encoder, train: Given, test: Given, settings: EvaluationConfig, seed: int
) -> dict[str, Answers]:
    """Answers by the votes of the nearest training images; one for each k, named knn-K if there are several."""
    bank, queries = train.features, test.features
    assert bank.y is not None
    assert queries.y is not None
    device = roomy(device_of(encoder), 2 * bank.x.size)
    votes = knn_votes(
        torch.from_numpy(bank.x).to(device),
        torch.from_numpy(bank.y),
        torch.from_numpy(queries.x),
        settings.k,
        settings.temperature,
    )
    answers = {}
    for k, voted in zip(settings.k, votes, strict=True):
        scores = (
            voted.masked_fill(voted == 0, -torch.inf) if bank.y.ndim == 1 else voted
        )  # no vote, no answer
        voters = {"voters": len(bank.x)} if k > len(bank.x) else {}  # all there are
        used = {"k": k, **voters, "temperature": settings.temperature, "similarity": "cosine"}
        answers["knn" if len(votes) == 1 else f"knn-{k}"] = Answers(
            scores.cpu().numpy(), queries.y, used, len(bank.x)
        )
    return answers


def logistic(
    encoder: Encoder, train: Given, test: Given, settings: EvaluationConfig, seed: int
) -> dict[str, Answers]:
    """Answers by logistic regression; the l2 is chosen on a tenth of every class."""
    known, asked = train.features, test.features
    assert known.y is not None
    assert asked.y is not None
    metric = metric_for(known.y, settings.metric)

    def held_out(logits: Tensor, labels: Tensor) -> float:
        return measure(metric, logits.cpu().numpy(), labels.cpu().numpy())

    classes = known.y.shape[1] if known.y.ndim == 2 else int(known.y.max()) + 1
    device = roomy(device_of(encoder), 3 * known.x.size)
    x, y = (torch.from_numpy(part).to(device) for part in (known.x, known.y))
    classifier = linear.fit(x, y, classes, seed=seed, measure=held_out)
    used = {
        "solver": "L-BFGS",
        "l2": classifier.l2,
        "l2_values": len(linear.L2),
        "held_out": classifier.held_out,
    }
    scores = classifier.logits(torch.from_numpy(asked.x).to(device)).cpu().numpy()
    return {"linear": Answers(scores, asked.y, used, len(known.x))}


def training(
    name: str, usual: ClassifierConfig, *, frozen: bool = False, amount: Amount | None = None
) -> Protocol:
    """The protocol that trains a classifier on images, by default with the encoder and on all labels."""

    def run(
        encoder: Encoder, train: Given, test: Given, settings: EvaluationConfig, seed: int
    ) -> dict[str, Answers]:
        config = settings.classifier(usual)
        asked = (
            test.features if frozen else test.images
        )  # a frozen encoder's features are there for other protocols too
        answers = train_classifier(
            encoder,
            train.images,
            asked,
            config,
            frozen=frozen,
            amount=amount,
            metric=metric_for(train.labels, settings.metric),
            seed=seed,
            workers=train.workers,
        )
        return {name: answers}

    return Protocol(run, random=True, on_images=True, tunes=not frozen, amount=amount, settings=TRAINING)


PROTOCOLS = {
    "knn": Protocol(knn, random=False, settings=("k", "temperature")),
    "linear": Protocol(logistic, random=True),
    "linear-sgd": training("linear-sgd", LINEAR_SGD, frozen=True),
    "finetune": training("finetune", FINETUNE),
}
USUAL = ("knn", "linear")
FEW = "semi-"  # and an amount, as in semi-1, semi-0.5 or semi-25-per-class


@dataclass(frozen=True)
class Task:
    """One encoder and what it is judged by: checked, and nothing computed yet."""

    encoder: Encoder
    train: Given
    test: Given
    protocols: tuple[str, ...]
    settings: EvaluationConfig
    metric: str
    seeds: tuple[int, ...]
    name: str  # of the encoder, in its scores
    data_set: str  # its name in a list of several, in the scores
    same_images: bool  # in train and test, which makes scores meaningless
    anew: Callable[[int], Encoder] | None  # makes the encoder again for each seed, where it is random itself


def evaluate(
    encoder: Encoder,
    *,
    train: Any,
    test: Any,
    protocols: str | Sequence[str] = USUAL,
    seed: int = 0,
    seeds: int = 1,
    workers: int = 0,
    cache: str | Path | None = None,
    **settings: Any,
) -> dict[str, Score]:
    """Score an encoder on labelled images: `train` is learned from, `test` is scored.

    Both are Features, or what `open_images` takes. `settings` are the fields of `EvaluationConfig`, such as k=20. What is
    random is repeated with `seeds` seeds from `seed` on. `cache` is a folder that features of images are kept in.
    Raises ConfigError for an unknown protocol or setting, DataError without labels.
    """
    names = tuple(field.name for field in fields(EvaluationConfig))
    for name in settings:
        if name not in names:
            raise ConfigError(
                f"There is no setting {name!r}.{did_you_mean(name, names)} There are: {', '.join(names)}."
            )
    config = EvaluationConfig(**settings)
    asked = (protocols,) if isinstance(protocols, str) else tuple(protocols)
    check_protocols(asked)
    check_settings(asked, config)
    return dict(
        judge(
            prepare(
                encoder, train, test, protocols, config, seed=seed, seeds=seeds, workers=workers, cache=cache
            )
        )
    )


def prepare(
    encoder: Encoder,
    train: Any,
    test: Any,
    protocols: str | Sequence[str],
    settings: EvaluationConfig,
    *,
    seed: int = 0,
    seeds: int = 1,
    workers: int = 0,
    cache: str | Path | None = None,
    name: str = "",
    data_set: str = "",
    anew: Callable[[int], Encoder] | None = None,
) -> Task:
    """Check everything that can be checked before any work; raises what `evaluate` raises."""
    check_encoder(encoder)
    protocols = (protocols,) if isinstance(protocols, str) else tuple(dict.fromkeys(protocols))
    check_protocols(protocols)
    if seeds < 1:
        raise ConfigError(f"seeds is {seeds}; expected at least 1.")
    check_seed(seed, seeds)
    folder = None if cache is None else Path(cache)
    learned = labelled(train, "train", encoder)
    opened = same_classes(learned, labelled(test, "test", encoder, learned.classes))
    for role, source in zip(("train", "test"), opened, strict=True):
        if isinstance(source, Features) and source.encoder not in (None, encoder.checksum()):
            raise ConfigError(
                f"The features given as {role} are of another encoder. Give those of this one, or the images."
            )
    picky = [one for one in protocols if protocol_named(one).on_images]
    if picky and any(isinstance(source, Features) for source in opened):
        raise ConfigError(
            f"The protocol {picky[0]} works on images, and features were given. Give the images."
        )
    train, test = (Given(source, encoder, workers, folder) for source in opened)
    metric = metric_for(train.labels, settings.metric)
    if picky and metric == "map11":
        raise ConfigError(
            f"The protocol {picky[0]} learns one label an image, and these have several. Use knn and linear."
        )
    if train.labels.ndim == 1:
        check_labels(train, [amount for one in picky if (amount := protocol_named(one).amount) is not None])
    same = same_images(*opened)
    seeds_of_all = tuple(range(seed, seed + seeds))
    return Task(encoder, train, test, protocols, settings, metric, seeds_of_all, name, data_set, same, anew)


def check_labels(train: Given, amounts: Sequence[Amount]) -> None:
    """Raise DataError when there is one class to learn from, or when a class has fewer images than are asked for.

    A percentage that comes to less than one image of a class is warned of: one is taken.
    """
    if len(np.unique(train.labels)) < 2:
        raise DataError(
            f"Only one class occurs among {train.description}; expected at least two to learn from."
        )
    for amount in amounts:
        rows = few(train.labels, amount, classes=train.source.classes)
        if not amount.per_class and len(rows) > max(1.5 * amount.value / 100 * len(train.labels), 1):
            logger.warning(
                "%s is less than one image of most classes, so one of each is learned from: %d of %d images, %.3g %%.",
                amount, len(rows), len(train.labels), 100 * len(rows) / len(train.labels),
            )  # fmt: skip


def check_settings(protocols: Sequence[str], settings: EvaluationConfig) -> None:
    """Raise ConfigError for a setting that was given and that none of the protocols uses."""
    used = {"metric", *(name for one in protocols for name in protocol_named(one).settings)}
    usual = EvaluationConfig()
    for name in (field.name for field in fields(EvaluationConfig)):
        if name not in used and getattr(settings, name) != getattr(usual, name):
            takers = [
                *(known for known in PROTOCOLS if name in PROTOCOLS[known].settings),
                *([f"{FEW}N"] * (name in TRAINING)),
            ]
            raise ConfigError(
                f"{name} was given, which {' and '.join(protocols)} {'does' if len(protocols) == 1 else 'do'} not use. "
                f"Leave it out, or add a protocol that does: {', '.join(takers)}."
            )


def check_protocols(protocols: Sequence[str]) -> None:
    """Raise ConfigError for a protocol that does not exist, or for none."""
    if not protocols:
        raise ConfigError(f"No protocol was given. There are: {', '.join(known())}.")
    for name in protocols:
        protocol_named(name)


def protocol_named(name: str) -> Protocol:
    """A protocol by its name."""
    if name.startswith(FEW):
        return training(name, SEMI, amount=Amount.parse(name.removeprefix(FEW)))
    if name not in PROTOCOLS:
        raise ConfigError(
            f"There is no protocol {name!r}.{did_you_mean(name, known())} There are: {', '.join(known())}."
        )
    return PROTOCOLS[name]


def known() -> list[str]:
    """The protocols' names, for people."""
    return [*PROTOCOLS, "semi-1", "semi-10", "semi-25-per-class (any percentage or number)"]


def judge(task: Task) -> Iterator[tuple[str, Score]]:
    """The names and scores of a task, each protocol's as soon as it is finished."""
    checksum = task.encoder.checksum()
    for name in task.protocols:
        protocol = protocol_named(name)
        if not protocol.on_images:
            check_width(task.train, task.test)
        seeds = task.seeds if protocol.random else task.seeds[:1]
        started = time.perf_counter()
        encoders = (task.encoder if task.anew is None else task.anew(seed) for seed in seeds)
        runs = [
            protocol.run(encoder, task.train, task.test, task.settings, seed)
            for encoder, seed in zip(encoders, seeds, strict=True)
        ]
        known = {
            "seeds": seeds if protocol.random else (),
            "seconds": time.perf_counter() - started,
            "encoder": task.name,
            "blake2b": checksum,
            "data_set": task.data_set,
            "train": task.train.description,
            "test": task.test.description,
            "same_images": task.same_images,
        }
        for variant in runs[0]:
            answers = [run[variant] for run in runs]
            yield variant, score_of(name, task.metric, answers, task.train.classes, **known)


def check_width(train: Given, test: Given) -> None:
    """Compute the features, and raise DataError when those of train and test cannot be of one encoder."""
    widths = [given.features.x.shape[1] for given in (train, test)]
    if widths[0] != widths[1]:
        raise DataError(
            f"The features are {widths[0]} numbers an image in train and {widths[1]} in test; "
            "expected both from the same encoder."
        )


def roomy(device: torch.device, numbers: int) -> torch.device:
    """The encoder's GPU when so many float32 numbers fit in half of its free memory, else the CPU."""
    if device.type != "cuda":
        return torch.device("cpu")  # MPS lacks float64 and does not tell how much memory is free
    return device if 4 * numbers <= torch.cuda.mem_get_info(device)[0] // 2 else torch.device("cpu")

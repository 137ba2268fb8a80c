"""Judge an encoder by what its features make easy. Nothing is ever chosen on test images."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from numbers import Real
from pathlib import Path
from typing import Any, get_origin, get_type_hints

import numpy as np
import torch

from byol.encoders.encoder import Encoder
from byol.errors import ConfigError, did_you_mean
from byol.evaluation import linear
from byol.evaluation.finetune import FINETUNE, LINEAR_SGD, SEMI, train_classifier
from byol.evaluation.inputs import Predictions, Split, open_splits, overlap
from byol.evaluation.knn import check_votes, knn_predictions
from byol.evaluation.metrics import metric_for
from byol.evaluation.score import Score, score_of
from byol.evaluation.sgd import ClassifierConfig
from byol.evaluation.subsets import Amount, few
from byol.evaluation.tables import Scores
from byol.features.embed import Features
from byol.method.draws import check_seed

TRAINING = (
    "base_lrs",
    "epochs",
    "weight_decays",
    "logit_cap",
    "logit_penalty",
)  # of protocols that train by SGD
logger = logging.getLogger("byol")


@dataclass(frozen=True)
class EvaluationConfig:
    """Settings of the protocols. Nothing is ever chosen on test images."""

    k: tuple[int, ...] = (20,)
    """Neighbours that vote in kNN. Several give a score each."""
    temperature: float = 0.07
    """Of the votes in kNN: exp(cosine / temperature)."""
    metric: str | None = None
    """top1, mean_per_class or map11; by default top1, and map11 where images are multi-label."""
    base_lrs: tuple[float, ...] = ()
    """Learning rates per 256 images: semi and finetune try 0.01 0.05 0.2 by default, linear-sgd 0.05 0.1 0.2 0.3 0.4."""
    epochs: tuple[float, ...] = ()
    """Passes over the images that they try; by default 80 in linear-sgd, 50 in semi, 10 in finetune."""
    weight_decays: tuple[float, ...] = ()
    """Weight decays that they try; by default none."""
    logit_cap: float | None = None
    """Squash their logits by a tanh into (-cap, cap); 20 in the paper's Table 7. By default not."""
    logit_penalty: float | None = None
    """Weight of the mean squared logit in their loss; 0.01 in the paper's Table 7. By default 0."""

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(EvaluationConfig).items():
            value = getattr(self, name)
            if name == "metric" or value is None:
                continue
            several = get_origin(kind) is tuple
            numbers = np.atleast_1d(
                value
            ).tolist()  # evaluate(..., k=5) or k=np.array([5, 10]): Python's own numbers
            if not all(isinstance(one, Real) for one in numbers) or (not several and len(numbers) != 1):
                raise ConfigError(f"{name} is {value!r}; expected {'numbers' if several else 'a number'}.")
            object.__setattr__(self, name, tuple(numbers) if several else numbers[0])
        check_votes(self.k, self.temperature)
        self.classifier(ClassifierConfig(base_lrs=(0.1,), epochs=(1.0,)))  # which checks

    def classifier(self, usual: ClassifierConfig) -> ClassifierConfig:
        """A protocol's usual way to train a classifier, with what is set here in its place."""
        own = {name: getattr(self, name) for name in TRAINING}
        return replace(usual, **{name: value for name, value in own.items() if value not in ((), None)})


@dataclass(frozen=True)
class Protocol:
    """A way to judge an encoder."""

    name: str
    run: Callable[
        [Split, Split, EvaluationConfig, int], dict[str, Predictions]
    ]  # train, test, settings, seed
    random: bool = True  # whether another seed may give another score
    on_images: bool = False  # whether it works on the images, which it augments, and not on features
    tunes: bool = False  # whether it trains the encoder too
    amount: Amount | None = None  # of labels that it learns from; None is all
    settings: tuple[str, ...] = ()  # of `EvaluationConfig`, that it uses besides the metric


def knn(train: Split, test: Split, settings: EvaluationConfig, seed: int) -> dict[str, Predictions]:
    """Predictions by the votes of the nearest training images; one for each k, named knn-K if there are several."""
    (x, y), (queries, labels) = train.tensors, test.tensors
    device = roomy(train.device, 2 * x.numel())
    found = knn_predictions(x.to(device), y, queries, settings.k, settings.temperature)
    predictions = {}
    for k, classes in zip(settings.k, found, strict=True):
        voters = {"voters": len(x)} if k > len(x) else {}  # all there are
        used = {"k": k, **voters, "temperature": settings.temperature, "similarity": "cosine"}
        name = "knn" if len(found) == 1 else f"knn-{k}"
        predictions[name] = Predictions(classes.cpu().numpy(), labels.numpy(), used, len(x))
    return predictions


def logistic(train: Split, test: Split, settings: EvaluationConfig, seed: int) -> dict[str, Predictions]:
    """Predictions by logistic regression; the l2 is chosen on a tenth of every class."""
    (x, y), (queries, labels) = train.tensors, test.tensors
    device = roomy(train.device, 3 * x.numel())
    metric = metric_for(train.labels, settings.metric)
    classifier = linear.fit(x.to(device), y.to(device), metric=metric, seed=seed)
    used = {
        "solver": "L-BFGS",
        "l2": classifier.l2,
        "l2_values": len(linear.L2),
        "validation_images": classifier.validation_images,
    }
    classes = classifier.predict(queries.to(device)).cpu().numpy()
    return {"linear": Predictions(classes, labels.numpy(), used, len(x))}


def training(
    name: str, usual: ClassifierConfig, *, frozen: bool = False, amount: Amount | None = None
) -> Protocol:
    """The protocol that trains a classifier on images, by default with the encoder and on all labels."""

    def run(train: Split, test: Split, settings: EvaluationConfig, seed: int) -> dict[str, Predictions]:
        assert train.encoder is not None
        # A frozen encoder's features are there for other protocols too.
        queries = test.features if frozen else test.images
        return {
            name: train_classifier(
                train.encoder, train.images, queries, settings.classifier(usual), frozen=frozen, amount=amount,
                metric=metric_for(train.labels, settings.metric), seed=seed, workers=train.workers,
            )
        }  # fmt: skip

    return Protocol(name, run, on_images=True, tunes=not frozen, amount=amount, settings=TRAINING)


PROTOCOLS = {
    "knn": Protocol("knn", knn, random=False, settings=("k", "temperature")),
    "linear": Protocol("linear", logistic),
    "linear-sgd": training("linear-sgd", LINEAR_SGD, frozen=True),
    "finetune": training("finetune", FINETUNE),
}
USUAL = ("knn", "linear")
FEW = "semi-"  # and an amount, as in semi-1, semi-0.5 or semi-25-per-class


def protocols_named(names: str | Sequence[str], settings: EvaluationConfig) -> tuple[Protocol, ...]:
    """Protocols by their names, each once. Raises ConfigError for unknown ones, and for settings that none of them uses."""
    chosen, names = [], (names,) if isinstance(names, str) else tuple(dict.fromkeys(names))
    known = [*PROTOCOLS, "semi-1", "semi-10", "semi-25-per-class (any percentage or number)"]
    for name in names:
        if name.startswith(FEW):
            chosen.append(training(name, SEMI, amount=Amount.parse(name.removeprefix(FEW))))
        elif name in PROTOCOLS:
            chosen.append(PROTOCOLS[name])
        else:
            meant = did_you_mean(name, known)
            raise ConfigError(f"There is no protocol {name!r}.{meant} There are: {', '.join(known)}.")
    if not chosen:
        raise ConfigError(f"No protocol was named. There are: {', '.join(known)}.")
    used = {"metric", *(name for one in chosen for name in one.settings)}
    for setting in fields(EvaluationConfig):
        name = setting.name
        if name not in used and getattr(settings, name) != setting.default:
            users = [one.name for one in PROTOCOLS.values() if name in one.settings]
            users += [f"{FEW}N"] * (name in TRAINING)
            raise ConfigError(
                f"{name} was set, which {' and '.join(names)} {'does' if len(names) == 1 else 'do'} not use. "
                f"Leave it out, or add a protocol that does: {', '.join(users)}."
            )
    return tuple(chosen)


@dataclass(frozen=True)
class Task:
    """One encoder and what it is judged by: checked, and nothing computed yet."""

    train: Split
    test: Split
    protocols: tuple[Protocol, ...]
    settings: EvaluationConfig
    seeds: tuple[int, ...]
    name: str  # of the encoder
    data_set: str  # its name in a list of several
    known: dict[str, Any]  # more that all of its scores say: fields of `Score`
    anew: Callable[[int], Encoder] | None  # makes the encoder again for each seed, where it is random itself


def evaluate(
    encoder: Encoder | None = None,
    *,
    train: Any,
    test: Any,
    protocols: str | Sequence[str] = USUAL,
    seed: int = 0,
    seeds: int = 1,
    workers: int = 0,
    cache: str | Path | None = None,
    **settings: Any,
) -> Scores:
    """Score an encoder on labelled images: `train` is learned from, `test` is scored.

    Both are what `open_images` takes, or Features or a file of them, which need no encoder. `settings` are the fields of
    `EvaluationConfig`, such as k=20. What is random is repeated with `seeds` seeds from `seed` on. `cache` is a folder that
    features of images are kept in. Raises ConfigError for an unknown protocol or setting, DataError without labels.
    """
    names = tuple(field.name for field in fields(EvaluationConfig))
    for name in settings:
        if name not in names:
            meant = did_you_mean(name, names)
            raise ConfigError(f"There is no setting {name!r}.{meant} There are: {', '.join(names)}.")
    config = EvaluationConfig(**settings)
    chosen = protocols_named(protocols, config)
    task = prepare(encoder, train, test, chosen, config, seed=seed, seeds=seeds, workers=workers, cache=cache)
    return Scores(judge(task))


def prepare(
    encoder: Encoder | None,
    train: Any,
    test: Any,
    protocols: tuple[Protocol, ...],
    settings: EvaluationConfig,
    *,
    seed: int = 0,
    seeds: int = 1,
    device: str | None = None,
    workers: int = 0,
    cache: str | Path | None = None,
    name: str = "",
    data_set: str = "",
    anew: Callable[[int], Encoder] | None = None,
) -> Task:
    """Check everything that can be checked before any work; raises what `evaluate` raises."""
    if seeds < 1:
        raise ConfigError(f"seeds is {seeds}; expected at least 1.")
    check_seed(seed, seeds)
    first, second = open_splits(encoder, train, test, device=device, workers=workers, cache=cache)
    on_images = [one.name for one in protocols if one.on_images]
    if on_images and any(isinstance(split.source, Features) for split in (first, second)):
        raise ConfigError(f"The protocol {on_images[0]} works on images, and got features. Give the images.")
    metric = metric_for(first.labels, settings.metric)
    if on_images and metric == "map11":
        raise ConfigError(
            f"The protocol {on_images[0]} learns one label an image, and these are multi-label. Use knn and linear."
        )
    for amount in (one.amount for one in protocols if one.amount is not None):
        rows, count = few(first.labels, amount, classes=first.source.classes), len(first.labels)
        if not amount.per_class and len(rows) > max(1.5 * amount.value / 100 * count, 1):
            words = "%s is less than one image of most classes, so one of each is learned from: %d of %d images, %.3g %%."
            logger.warning(words, amount, len(rows), count, 100 * len(rows) / count)
    known = {
        "metric": metric,
        "classes": first.classes,
        "encoder_checksum": first.checksum,
        "train": first.source.description,
        "test": second.source.description,
        "overlap": overlap(first.source, second.source),
    }
    every = tuple(range(seed, seed + seeds))
    return Task(first, second, protocols, settings, every, name, data_set, known, anew)


def judge(task: Task) -> Iterator[tuple[str, Score]]:
    """The names and scores of a task, each protocol's as soon as it is finished."""
    for protocol in task.protocols:
        if not protocol.on_images:
            _ = task.train.features, task.test.features  # computed now, so that their time does not count
        seeds = task.seeds if protocol.random else task.seeds[:1]
        started = time.perf_counter()
        runs = []
        for seed in seeds:
            splits = task.train, task.test
            if task.anew is not None:
                encoder = task.anew(seed)
                splits = replace(task.train, encoder=encoder), replace(task.test, encoder=encoder)
            runs.append(protocol.run(*splits, task.settings, seed))
        seconds = time.perf_counter() - started
        for variant in runs[0]:
            yield variant, score_of(
                protocol.name, [run[variant] for run in runs], seeds=seeds if protocol.random else (),
                seconds=seconds, encoder_name=task.name, data_set=task.data_set, **task.known,
            )  # fmt: skip


def roomy(device: torch.device | None, numbers: int) -> torch.device:
    """The GPU when so many float32 numbers fit in half of its free memory, else the CPU."""
    if device is None or device.type != "cuda":
        return torch.device("cpu")  # MPS lacks float64 and does not tell how much memory is free
    return device if 4 * numbers <= torch.cuda.mem_get_info(device)[0] // 2 else torch.device("cpu")

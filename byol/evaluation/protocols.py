"""Judge an encoder by what its features make easy. Nothing is ever chosen on test images."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch

from byol.encoders.encoder import Encoder, device_of
from byol.errors import ConfigError, did_you_mean
from byol.evaluation import inputs, linear
from byol.evaluation.finetune import FINETUNE, LINEAR_SGD, SEMI, train_classifier
from byol.evaluation.inputs import Predictions, Split
from byol.evaluation.knn import check_votes, knn_predictions
from byol.evaluation.metrics import metric_for
from byol.evaluation.score import Score, score_of
from byol.evaluation.sgd import ClassifierConfig
from byol.evaluation.subsets import Amount, few
from byol.evaluation.tables import Scores
from byol.features.embed import check_encoder
from byol.features.features import Features
from byol.method.draws import check_seed
from byol.world import pick_device

TRAINING = ("base_lrs", "epochs", "weight_decays", "logit_cap", "logit_penalty")  # settings of SGD
logger = logging.getLogger("byol")


@dataclass(frozen=True)
class EvaluationConfig:
    """Settings of the protocols."""

    k: tuple[int, ...] = (20,)
    """Neighbours that vote in kNN. Several give a score each."""
    temperature: float = 0.07
    """Of the votes in kNN: exp(cosine / temperature)."""
    metric: str | None = None
    """top1, mean_per_class or map11; by default top1, and map11 where images are multi-label."""
    base_lrs: tuple[float, ...] = ()
    """Learning rates per 256 images: by default 0.01 0.05 0.2, in linear-sgd 0.05 0.1 0.2 0.3 0.4."""
    epochs: tuple[float, ...] = ()
    """Passes over the images that are tried: by default 80 in linear-sgd, 50 in semi, 10 in finetune."""
    weight_decays: tuple[float, ...] = ()
    """Weight decays that are tried; by default none."""
    logit_cap: float | None = None
    """Squash logits by a tanh into (-cap, cap); 20 in the paper's Table 7. By default not."""
    logit_penalty: float | None = None
    """Weight of the mean squared logit in the loss; 0.01 in the paper's Table 7. By default 0."""

    def __post_init__(self) -> None:
        for name, value in vars(self).copy().items():
            if name == "metric" or value is None:
                continue
            several = isinstance(getattr(EvaluationConfig, name), tuple)  # the default is
            numbers = np.atleast_1d(value).tolist()  # of k=5 and k=np.array([5, 10]) Python's own numbers
            if not all(isinstance(one, Real) for one in numbers) or (not several and len(numbers) != 1):
                raise ConfigError(f"{name} is {value!r}; expected {'numbers' if several else 'a number'}.")
            object.__setattr__(self, name, tuple(numbers) if several else numbers[0])
        check_votes(self.k, self.temperature)
        self.classifier(LINEAR_SGD)  # which checks

    def classifier(self, usual: ClassifierConfig) -> ClassifierConfig:
        """A protocol's usual way to train a classifier, with what is set here in its place."""
        return replace(
            usual, **{name: vars(self)[name] for name in TRAINING if vars(self)[name] not in ((), None)}
        )


@dataclass(frozen=True)
class Task:
    """One encoder and what it is judged by: checked, and nothing computed yet."""

    train: Split
    test: Split
    protocols: tuple["Protocol", ...]
    settings: EvaluationConfig
    metric: str
    seeds: tuple[int, ...]
    known: dict[str, Any]  # what all of its scores say: fields of `Score`
    anew: Callable[..., Encoder] | None  # makes the encoder of a `seed`, where it is random itself


@dataclass(frozen=True)
class Protocol:
    """A way to judge an encoder."""

    name: str
    run: Callable[[Task, int], dict[str, Predictions]]  # of a seed
    random: bool = True  # whether another seed may give another score
    on_images: bool = False  # whether it works on the images, which it augments, and not on features
    tunes: bool = False  # whether it trains the encoder too
    amount: Amount | None = None  # of labels that it learns from; None is all
    settings: tuple[str, ...] = ()  # of `EvaluationConfig`, that it uses besides the metric


def knn(task: Task, seed: int) -> dict[str, Predictions]:
    """Predictions by the votes of the nearest training images: for several k named knn-K."""
    (x, y), (queries, labels) = task.train.tensors, task.test.tensors
    ks, temperature, device = task.settings.k, task.settings.temperature, roomy(task.train, copies=2)
    predictions = {}
    for k, found in zip(ks, knn_predictions(x.to(device), y, queries, ks, temperature), strict=True):
        voters = {"voters": len(x)} if k > len(x) else {}  # all there are
        used = {"k": k, **voters, "temperature": temperature, "similarity": "cosine"}
        name = "knn" if len(ks) == 1 else f"knn-{k}"
        predictions[name] = Predictions(found.cpu().numpy(), labels.numpy(), used, len(x))
    return predictions


def logistic(task: Task, seed: int) -> dict[str, Predictions]:
    """Predictions by logistic regression; the l2 is chosen on a tenth of every class."""
    (x, y), (queries, labels) = task.train.tensors, task.test.tensors
    device = roomy(task.train, copies=3)
    classifier = linear.fit(x.to(device), y.to(device), metric=task.metric, seed=seed)
    used = {"solver": "L-BFGS", "l2": classifier.l2, "l2_values": len(linear.L2)}
    used |= {"validation_images": classifier.validation_images}
    found = classifier.predict(queries.to(device)).cpu().numpy()
    return {"linear": Predictions(found, labels.numpy(), used, len(x))}


def roomy(split: Split, copies: int) -> torch.device:
    """The GPU when so many copies of the features fit in half of its free memory, else the CPU."""
    if split.device.type != "cuda":
        return torch.device("cpu")  # MPS lacks float64 and does not tell how much memory is free
    fits = 4 * copies * split.features.x.size <= torch.cuda.mem_get_info(split.device)[0] // 2
    return split.device if fits else torch.device("cpu")


def training(
    name: str, usual: ClassifierConfig, *, frozen: bool = False, amount: Amount | None = None
) -> Protocol:
    """The protocol that trains a classifier on images, by default with the encoder and on all labels."""

    def run(task: Task, seed: int) -> dict[str, Predictions]:
        train, test = (
            task.train,
            task.test.features if frozen else task.test.images,
        )  # perhaps computed before
        assert train.encoder is not None
        learn = partial(train_classifier, train.encoder, train.images, test, task.settings.classifier(usual))
        workers, metric = train.workers, task.metric
        found = learn(frozen=frozen, amount=amount, metric=metric, seed=seed, workers=workers)
        return {name: found}

    return Protocol(name, run, on_images=True, tunes=not frozen, amount=amount, settings=TRAINING)


PROTOCOLS = {
    "knn": Protocol("knn", knn, random=False, settings=("k", "temperature")),
    "linear": Protocol("linear", logistic),
    "linear-sgd": training("linear-sgd", LINEAR_SGD, frozen=True),
    "finetune": training("finetune", FINETUNE),
}
FEW = "semi-"  # and an amount, as in semi-1, semi-0.5 or semi-25-per-class


def protocols_named(names: str | Sequence[str], settings: EvaluationConfig) -> tuple[Protocol, ...]:
    """Protocols by name, each once. Raises ConfigError for unknown ones, and for settings that none uses."""
    names = (names,) if isinstance(names, str) else tuple(dict.fromkeys(names))
    known = [*PROTOCOLS, "semi-1", "semi-10", "semi-25-per-class (any percentage or number)"]
    unknown = [name for name in names if name not in PROTOCOLS and not name.startswith(FEW)]
    if unknown or not names:
        what = f"{unknown[0]!r}.{did_you_mean(unknown[0], known)}" if unknown else "without a name."
        raise ConfigError(f"There is no protocol {what} There are: {', '.join(known)}.")
    chosen = tuple(
        PROTOCOLS.get(name) or training(name, SEMI, amount=Amount.parse(name.removeprefix(FEW)))
        for name in names
    )
    used = {"metric", *(setting for one in chosen for setting in one.settings)}
    for setting in fields(EvaluationConfig):
        if setting.name not in used and getattr(settings, setting.name) != setting.default:
            users = [one.name for one in PROTOCOLS.values() if setting.name in one.settings]
            users += [f"{FEW}N"] if setting.name in TRAINING else []
            raise ConfigError(
                f"{setting.name} was set, and is not used by {', '.join(names)}. Leave it out, or add a "
                f"protocol that uses it: {', '.join(users)}."
            )
    return chosen


def evaluate(
    encoder: Encoder | None = None,
    *,
    train: Any,
    test: Any,
    protocols: str | Sequence[str] = ("knn", "linear"),
    seed: int = 0,
    seeds: int = 1,
    workers: int = 0,
    cache: str | Path | None = None,
    **settings: Any,
) -> Scores:
    """Score an encoder on labelled images: `train` is learned from, `test` is scored.

    Both are what `open_images` takes, or Features or a file of them, which need no encoder. `settings`
    are the fields of `EvaluationConfig`, such as k=20. What is random is repeated with `seeds` seeds from
    `seed` on. `cache` is a folder that features of images are kept in. Raises ConfigError for an unknown
    protocol or setting, DataError without labels.
    """
    names = tuple(field.name for field in fields(EvaluationConfig))
    for name in settings:
        if name not in names:
            meant = did_you_mean(name, names)
            raise ConfigError(f"There is no setting {name!r}.{meant} There are: {', '.join(names)}.")
    config = EvaluationConfig(**settings)
    chosen = protocols_named(protocols, config)
    more: dict[str, Any] = {"seed": seed, "seeds": seeds, "workers": workers, "cache": cache}
    return Scores(judge(prepare(encoder, train, test, chosen, config, **more)))


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
    anew: Callable[..., Encoder] | None = None,
) -> Task:
    """Open and check everything that can be checked before any work; raises what `evaluate` raises.

    Features without an encoder are worked on by the device. `name` and `data_set` are for the scores.
    """
    if encoder is not None:
        check_encoder(encoder)
    if seeds < 1:
        raise ConfigError(f"seeds is {seeds}; expected at least 1.")
    check_seed(seed, seeds)
    learned = inputs.opened(train, "train", encoder)
    sources = inputs.same_classes(learned, inputs.opened(test, "test", encoder, learned.classes))
    labels = inputs.labels_of(sources[0], learned=True)
    metric, checksum = metric_for(labels, settings.metric), inputs.checksum_of(encoder, *sources)
    on_images = next((one.name for one in protocols if one.on_images), None)
    if on_images and (metric == "map11" or any(isinstance(source, Features) for source in sources)):
        what = "multi-label ones" if metric == "map11" else "features"
        raise ConfigError(
            f"{on_images} works on images of one label each, and got {what}. Use knn and linear."
        )
    for amount in (one.amount for one in protocols if one.amount is not None):
        rows = few(labels, amount, classes=learned.classes)
        if not amount.per_class and len(rows) > max(1.5 * amount.value / 100 * len(labels), 1):
            words = (
                "%s is less than one image of most classes: of each one is learned from, %d of %d, %.3g %%."
            )
            logger.warning(words, amount, len(rows), len(labels), 100 * len(rows) / len(labels))
    more = encoder, pick_device(device) if encoder is None else device_of(encoder), workers
    first, second = (Split(source, *more, None if cache is None else Path(cache)) for source in sources)
    known = {
        "metric": metric,
        "classes": labels.shape[1] if labels.ndim == 2 else len(np.unique(labels)),
        "encoder_name": name,
        "encoder_checksum": checksum or "unknown",
        "data_set": data_set,
        "train": sources[0].description,
        "test": sources[1].description,
        "overlap": inputs.overlap(*sources),
    }
    return Task(first, second, protocols, settings, metric, tuple(range(seed, seed + seeds)), known, anew)


def judge(task: Task) -> Iterator[tuple[str, Score]]:
    """The names and scores of a task, each protocol's as soon as it is finished."""
    for protocol in task.protocols:
        if not protocol.on_images:
            _ = task.train.features, task.test.features  # computed now: their time does not count
        seeds, started, runs = task.seeds if protocol.random else task.seeds[:1], time.perf_counter(), []
        for seed in seeds:
            if task.anew is not None:
                encoder = task.anew(seed=seed)
                train, test = (replace(side, encoder=encoder) for side in (task.train, task.test))
                task = replace(task, train=train, test=test)
            runs.append(protocol.run(task, seed))
        known = task.known | {"seconds": time.perf_counter() - started}
        for variant in runs[0]:
            found = [run[variant] for run in runs]
            yield variant, score_of(protocol.name, found, seeds=seeds if protocol.random else (), **known)

"""Judge an encoder by what its features make easy. Nothing is ever chosen on test images."""

import copy
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, fields, replace
from functools import cached_property, partial
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from byol.data.images import Images
from byol.data.readers.reader import evenly_spaced
from byol.encoders.encoder import Encoder, device_of
from byol.encoders.load import untrained
from byol.errors import ConfigError, did_you_mean
from byol.evaluation import inputs, linear
from byol.evaluation.classifier import Classifier, KnnClassifier, LinearClassifier, check_place, names_of
from byol.evaluation.finetune import FINETUNE, LINEAR_SGD, SEMI, train_classifier
from byol.evaluation.inputs import Predictions, Split, labels_of
from byol.evaluation.knn import check_votes, knn_predictions
from byol.evaluation.metrics import metric_for
from byol.evaluation.score import Score, score_of
from byol.evaluation.sgd import ClassifierConfig
from byol.evaluation.subsets import Amount, few
from byol.evaluation.tables import Scores
from byol.features.embed import check_encoder, contribute, embed, prepared_batches
from byol.features.features import Features, tensor_of
from byol.features.formats import Array
from byol.method.draws import check_seed
from byol.method.health import settle
from byol.method.hidden import HiddenLayer
from byol.models.whitening import HalfWhitening
from byol.world import ALONE, World, pick_device

TRAINING = ("base_lrs", "epochs", "weight_decays", "logit_cap", "logit_penalty")  # settings of SGD
SETTLED = 256  # images whose statistics an untrained network gets
WHITENED = 2048  # images whose features it half-whitens by, if the trained one does
SIDE = 32  # pixels: larger images are shrunk before their pixels are features
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
        own = {name: getattr(self, name) for name in TRAINING}
        return replace(usual, **{name: value for name, value in own.items() if value not in ((), None)})


@dataclass(frozen=True)
class Task:
    """One encoder and what it is judged by: checked, and nothing computed yet."""

    train: Split
    test: Split
    divided: str  # how one set was divided into both, in words; empty where two were given
    encoder: Encoder | None  # None for features
    device: torch.device  # where features are worked on
    workers: int
    cache: Path | None  # where features of images are kept
    protocols: tuple["Protocol", ...]
    settings: EvaluationConfig
    seeds: tuple[int, ...]
    known: dict[str, Any]  # what all of its scores say: fields of `Score`
    anew: Callable[..., Encoder] | None  # makes the encoder of a `seed`, where it is random itself
    classifier_file: Path | None  # that its only classifier is kept in
    world: World = ALONE  # whose processes share the computing of features; all else is done by rank 0

    @cached_property
    def train_features(self) -> Features:
        """The representations of the images that can be read, with their labels; computed when first used."""
        return self._features(self.train)

    @cached_property
    def test_features(self) -> Features:
        return self._features(self.test)

    def _features(self, split: Split) -> Features:
        if isinstance(split, Features):
            return split
        assert self.encoder is not None
        return embed(self.encoder, split, store=self.cache, workers=self.workers, world=self.world)

    def embed(self) -> None:
        """Compute the features that its protocols work on, all processes together; rank 0 has them then."""
        train = any(protocol.usual is None for protocol in self.protocols)
        test = not all(protocol.tunes for protocol in self.protocols)
        for wanted, name in ((train, "train"), (test, "test")):
            split = getattr(self, name)
            if wanted and self.world.rank == 0:
                getattr(self, f"{name}_features")
            elif wanted and isinstance(split, Images):
                assert self.encoder is not None
                contribute(self.encoder, split, workers=self.workers, store=self.cache, world=self.world)

    def tensors(self, copies: int) -> tuple[Tensor, Tensor, Tensor, Array]:
        """Train features (N, D), their labels, test features, and test labels for the score.

        They lie on the GPU when so many copies fit in half of its free memory, else on the CPU.
        """
        device, x = torch.device("cpu"), tensor_of(self.train_features.x)
        if self.device.type == "cuda":  # MPS lacks float64 and does not tell how much memory is free
            fits = copies * x.nbytes <= torch.cuda.mem_get_info(self.device)[0] // 2
            device = self.device if fits else device
        y, queries = tensor_of(labels_of(self.train_features)), tensor_of(self.test_features.x)
        return x.to(device), y.to(device), queries.to(device), labels_of(self.test_features)

    def classifier(
        self, of_features: LinearClassifier | KnnClassifier, classes: Tensor | None, protocol: str
    ) -> Classifier | None:
        """With the encoder that the images were embedded by; None where it was given features."""
        if self.encoder is None or isinstance(self.train, Features):
            return None
        return Classifier(self.encoder, of_features, names_of(self.train.classes, classes), protocol=protocol)


@dataclass(frozen=True)
class Protocol:
    """A way to judge an encoder."""

    name: str
    run: Callable[["Protocol", Task, int], dict[str, Predictions]]  # of a seed
    settings: tuple[str, ...] = ()  # of `EvaluationConfig`, that it uses besides the metric
    random: bool = True  # whether another seed may give another score
    usual: ClassifierConfig | None = None  # how it trains on the images, which it augments; None: on features
    tunes: bool = False  # whether it trains the encoder too
    amount: Amount | None = None  # of labels that it learns from; None is all


def knn(protocol: Protocol, task: Task, seed: int) -> dict[str, Predictions]:
    """Predictions by the votes of the nearest training images: for several k named knn-K."""
    x, y, queries, labels = task.tensors(copies=2)
    ks, temperature, predictions = task.settings.k, task.settings.temperature, {}
    classes, columns = (None, None) if y.ndim == 2 else y.unique(return_inverse=True)
    for k, found in zip(ks, knn_predictions(x, y, queries, ks, temperature), strict=True):
        voters = {"voters": len(x)} if k > len(x) else {}  # all there are
        used = {"k": k, **voters, "temperature": temperature, "similarity": "cosine"}
        name = "knn" if len(ks) == 1 else f"knn-{k}"
        said = None  # of several labels votes are not probabilities
        if columns is not None:
            said = task.classifier(KnnClassifier(x, columns, k, temperature), classes, name)
        predictions[name] = Predictions(found.cpu().numpy(), labels, used, len(x), said)
    return predictions


def logistic(protocol: Protocol, task: Task, seed: int) -> dict[str, Predictions]:
    """Predictions by logistic regression; the l2 is chosen on a tenth of every class."""
    x, y, queries, labels = task.tensors(copies=3)
    found = linear.fit(x, y, metric=task.known["metric"], seed=seed)
    used = {"solver": "L-BFGS", "l2": found.l2, "l2_values": len(linear.L2)}
    used |= {"validation_images": found.validation_images}
    said = task.classifier(found.classifier, found.classes, "linear")
    return {"linear": Predictions(found.predict(queries).cpu().numpy(), labels, used, len(x), said)}


def trained(protocol: Protocol, task: Task, seed: int) -> dict[str, Predictions]:
    """Predictions by a classifier that is trained on the images, perhaps with the encoder."""
    assert task.encoder is not None
    assert protocol.usual is not None
    assert isinstance(task.train, Images)
    test = task.test if protocol.tunes else task.test_features  # which other protocols may have computed
    config, amount, metric = task.settings.classifier(protocol.usual), protocol.amount, task.known["metric"]
    learn = partial(train_classifier, task.encoder, task.train, test, config, frozen=not protocol.tunes)
    name, more = protocol.name, {"amount": amount, "metric": metric, "workers": task.workers}
    return {name: learn(seed=seed, protocol=name, **more)}


PROTOCOLS = {
    "knn": Protocol("knn", knn, ("k", "temperature"), random=False),
    "linear": Protocol("linear", logistic),
    "linear-sgd": Protocol("linear-sgd", trained, TRAINING, usual=LINEAR_SGD),
    "finetune": Protocol("finetune", trained, TRAINING, usual=FINETUNE, tunes=True),
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
    semi = partial(Protocol, run=trained, settings=TRAINING, usual=SEMI, tunes=True)
    chosen = tuple(
        PROTOCOLS.get(name) or semi(name, amount=Amount.parse(name.removeprefix(FEW))) for name in names
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
    save_classifier: str | Path | None = None,
    **settings: Any,
) -> Scores:
    """Score an encoder on labelled images: `train` is learned from, `test` is scored.

    Both are what `open_images` takes, or Features or a file of them, which need no encoder. A number as
    `test`, such as 0.3, scores this share of every class of `train`, drawn from the seed. `settings`
    are the fields of `EvaluationConfig`, such as k=20. What is random is repeated with `seeds` seeds from
    `seed` on. `cache` is a folder that features of images are kept in. `save_classifier` is a file for the
    classifier that is scored, with its encoder, for `load_classifier`; one protocol, k and seed make one.
    Raises ConfigError for an unknown protocol or setting, DataError without labels.
    """
    names = tuple(field.name for field in fields(EvaluationConfig))
    for name in settings:
        if name not in names:
            meant = did_you_mean(name, names)
            raise ConfigError(f"There is no setting {name!r}.{meant} There are: {', '.join(names)}.")
    config = EvaluationConfig(**settings)
    chosen = protocols_named(protocols, config)
    more: dict[str, Any] = {"seed": seed, "seeds": seeds, "workers": workers, "cache": cache}
    more["save_classifier"] = save_classifier
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
    overlap: int | None = None,
    save_classifier: str | Path | None = None,
    world: World = ALONE,
) -> Task:
    """Open and check everything that can be checked before any work; raises what `evaluate` raises.

    Features without an encoder are worked on by the device. `name` and `data_set` are for the scores, as is
    `overlap` where it is known already. All processes of a `world` call it alike.
    """
    if encoder is not None:
        check_encoder(encoder)
    if seeds < 1:
        raise ConfigError(f"seeds is {seeds}; expected at least 1.")
    check_seed(seed, seeds)
    share, words = inputs.share_of(test), ""
    learned = inputs.opened(train, "train", encoder)
    if share is None:
        splits = inputs.same_classes(learned, inputs.opened(test, "test", encoder, learned.classes))
        if world.rank == 0:
            inputs.warn_of_untaught(*splits)
    else:
        splits, words = inputs.divided(learned, share, seed)
    labels = labels_of(splits[0], learned=True)
    metric, checksum = metric_for(labels, settings.metric), inputs.checksum_of(encoder, *splits)
    on_images = next((one.name for one in protocols if one.usual), None)
    if on_images and (metric == "map11" or any(isinstance(split, Features) for split in splits)):
        what = "multi-label ones" if metric == "map11" else "features"
        raise ConfigError(
            f"{on_images} works on images of one label each, and got {what}. Use knn and linear."
        )
    for amount in (one.amount for one in protocols if one.amount is not None):
        rows = few(labels, amount, classes=learned.classes)
        if not amount.per_class and len(rows) > max(1.5 * amount.value / 100 * len(labels), 1):
            learned_from = f"{len(rows)} of {len(labels)}, {100 * len(rows) / len(labels):.3g} %"
            most = "is less than one image of most classes: one of each is learned from"
            logger.warning(f"{amount} {most}, {learned_from}.")
    classifier_file = None if save_classifier is None else Path(save_classifier)
    if classifier_file is not None:
        check_classifier_file(classifier_file, encoder, splits[0], protocols, settings, seeds)
    known = {
        "metric": metric,
        "classes": labels.shape[1] if labels.ndim == 2 else len(np.unique(labels)),
        "encoder_name": name,
        "encoder_checksum": checksum or "unknown",
        "data_set": data_set,
        "train": splits[0].description,
        "test": splits[1].description,
        "overlap": inputs.overlap(*splits) if overlap is None and world.rank == 0 else overlap or 0,
    }
    place = pick_device(device) if encoder is None else device_of(encoder)
    home, every = None if cache is None else Path(cache), tuple(range(seed, seed + seeds))
    return Task(
        *splits,
        words,
        encoder,
        place,
        workers,
        home,
        protocols,
        settings,
        every,
        known,
        anew,
        classifier_file,
        world,
    )


def check_classifier_file(
    file: Path,
    encoder: Encoder | None,
    train: Split,
    protocols: tuple[Protocol, ...],
    settings: EvaluationConfig,
    seeds: int,
) -> None:
    """Raise ConfigError unless one classifier comes of a task, and can be kept in a file with its encoder."""
    if encoder is None or isinstance(train, Features):
        raise ConfigError("save_classifier keeps an encoder too; expected an encoder, and train images.")
    count = sum(len(settings.k) if one.name == "knn" else seeds for one in protocols)
    if count != 1:
        raise ConfigError(
            f"save_classifier keeps one classifier, and {count} are scored. Name one of the protocols "
            f"{', '.join(one.name for one in protocols)}, one seed, and of knn one k."
        )
    if protocols[0].name == "knn" and train.label_matrix is not None:
        raise ConfigError("save_classifier of multi-label images is for linear: votes are not probabilities.")
    check_place(file)


def judge(task: Task) -> Iterator[tuple[str, Score]]:
    """The names and scores of a task, each protocol's as soon as it is finished; on rank 0 alone."""
    task.embed()  # all processes together, and now: its time does not count
    for protocol in task.protocols if task.world.rank == 0 else ():
        seeds, started, runs = task.seeds if protocol.random else task.seeds[:1], time.perf_counter(), []
        for seed in seeds:
            now = task if task.anew is None else replace(task, encoder=task.anew(seed=seed))
            runs.append(protocol.run(protocol, now, seed))
        known = task.known | {"seconds": time.perf_counter() - started}
        for variant in runs[0]:
            found = [run[variant] for run in runs]
            if task.classifier_file is not None:
                assert found[0].classifier is not None
                found[0].classifier.save(task.classifier_file)
            found = [replace(one, classifier=None) for one in found]  # which may hold gigabytes
            yield variant, score_of(protocol.name, found, seeds=seeds if protocol.random else (), **known)


@dataclass(frozen=True)
class Baseline:
    """An encoder made for comparison with another one."""

    make: Callable[..., Encoder]  # of an encoder, with `seed` and, for code of the user's own, its name `net`
    takes: Callable[[Protocol], bool]  # which protocols it is scored by
    anew: bool = False  # whether each seed has fresh weights of its own


def pixels(encoder: Encoder, *, seed: int = 0, net: str | None = None) -> Encoder:
    """The pixels that the encoder is fed, normalised as for it; shrunk to a side of 32 at most."""
    info = encoder.info
    height, width = (min(SIDE, side) for side in info.image_size)
    plain: dict[str, Any] = {"architecture": None, "options": {}, "hidden_layer": None, "pooling": "none"}
    size: dict[str, Any] = {"image_size": (height, width), "features": info.channels * height * width}
    return Encoder(HiddenLayer(nn.Flatten()), replace(info, skip=0, calls=1, **plain, **size)).eval()


def settled(encoder: Encoder, images: Images) -> Encoder:
    """An untrained encoder with statistics of some of the images, as training would give it."""
    encoder, rows = copy.deepcopy(encoder), evenly_spaced(len(images), SETTLED)
    with closing(prepared_batches(images.subset(rows), encoder, workers=0)) as batches:
        parts = [part.clone() for part, _ in batches]
    if parts:  # else none can be read, which is told when they are embedded
        x = encoder.prepare(torch.cat(parts).to(device_of(encoder)), normalised=True)
        settle(encoder.network, x)
    if encoder.info.options.get("whiten"):
        net: Any = encoder.net
        some = images.subset(evenly_spaced(len(images), WHITENED))
        net.whitening = HalfWhitening.of(torch.from_numpy(embed(encoder, some).x)).to(device_of(encoder))
    return encoder


BASELINES = {
    "pixels": Baseline(pixels, lambda protocol: protocol.usual is None),
    "untrained": Baseline(untrained, lambda protocol: not protocol.tunes),
    # From scratch on the same labels, with the same budget.
    "supervised": Baseline(untrained, lambda protocol: protocol.tunes, anew=True),
}

"""Protocols that train on labels: linear evaluation with SGD, fine-tuning on few or all labels, and their baseline.

Settings are chosen on held-out training images. Test images are answered once, at the end, and their labels are not read.
"""

import copy
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby, product
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from byol.data.images import Images
from byol.encoders.encoder import Encoder, device_of
from byol.errors import DataError, TrainingError
from byol.evaluation.inputs import Answers
from byol.evaluation.metrics import measure
from byol.evaluation.sgd import ClassifierConfig, Trial, batch_size_for, fit, logits_of
from byol.evaluation.subsets import Amount, few, held_out
from byol.evaluation.train_batches import Labelled
from byol.features.embed import Features, check_channels, check_encoder, embed
from byol.machine import settle
from byol.world import World

logger = logging.getLogger("byol")
MOST_HELD_OUT = 10_009  # images, as in the paper

LINEAR_SGD = ClassifierConfig(base_lrs=(0.05, 0.1, 0.2, 0.3, 0.4), epochs=(80.0,), batch_size=1024)
SEMI = ClassifierConfig(base_lrs=(0.01, 0.05, 0.2), epochs=(50.0,), held_out=0.2)
FINETUNE = ClassifierConfig(base_lrs=(0.01, 0.05, 0.2), epochs=(10.0,))


@dataclass(frozen=True)
class _Tried:
    """A trained trial and how it did on the held-out images."""

    trial: Trial
    classifier: nn.Linear
    score: float | None  # None when the training diverged
    loss: float

    def rank(self) -> tuple[float, float]:
        """The better, the larger; the loss decides between equals, which are frequent among few images."""
        return (-1.0, 0.0) if self.score is None else (self.score, -self.loss)


def train_classifier(
    encoder: Encoder,
    train: Images,
    test: Images | Features,
    config: ClassifierConfig,
    *,
    frozen: bool,
    amount: Amount | None = None,
    metric: str = "top1",
    seed: int = 0,
    workers: int = 0,
) -> Answers:
    """Train a linear classifier, and unless `frozen` a copy of the encoder with it, on so many labels; answer the test images.

    Settings are chosen by the metric on a held-out part of those labels; no other is seen. On a frozen encoder the
    classifier that does best there answers; fine-tuning starts again with the chosen settings, on all of them. `test` may be
    given as the frozen encoder's features. Raises DataError for images without labels or of one class, ConfigError for other
    channels, TrainingError when nothing converges.
    """
    labels = check(encoder, train, test)
    if amount is not None:
        rows = few(labels, amount, seed, train.classes)
        train, labels = train.subset(rows), labels[rows]
    device = device_of(encoder)
    if device.type == "cpu":
        settle()
    config = replace(config, precision=config.precision or World(0, 1, device).default_precision())
    images = Labelled.open(train, device, workers)
    trials = trials_of(config)
    share = min(config.held_out, MOST_HELD_OUT / len(train)) if len(trials) > 1 else 0.0
    learn, choose = held_out(labels, share, seed)
    choose = images.readable(choose)
    if len(trials) > 1 and len(choose) == 0:
        logger.warning(
            "There are no images to choose settings on, so the middle ones of %d are taken.", len(trials)
        )
    tried: list[_Tried] = []
    part = images.subset(learn)
    if len(choose):
        groups = [
            list(group) for _, group in groupby(trials, lambda trial: trial.epochs if frozen else trial)
        ]
        asked = train.subset(choose)
        tried = [
            one
            for group in groups
            for one in _try(encoder, part, asked, group, config, metric, frozen=frozen, seed=seed)
        ]
    best = max(tried, key=_Tried.rank, default=None)
    if best is not None and best.score is None:
        raise TrainingError(_diverged(config))
    chosen = trials[len(trials) // 2] if best is None else best.trial
    if best is not None and frozen:
        tuned, classifier, learned = encoder, best.classifier, part
    else:  # fine-tuning starts again, on all labels
        tuned, learned = encoder if frozen else copy.deepcopy(encoder), images
        [classifier] = fit(tuned, images, [chosen], config, frozen=frozen, seed=seed)
        if not (finite(classifier) and sound(tuned, images)):
            raise TrainingError(_diverged(config))
    found = test if isinstance(test, Features) else embed(tuned, test, workers=workers)
    settings = {
        "optimizer": "SGD, Nesterov momentum 0.9, cosine",
        **asdict(chosen),
        "batch_size": batch_size_for(len(learned), config.batch_size),
        **{name: getattr(config, name) for name in ("crop_area", "logit_cap", "logit_penalty", "precision")},
        "held_out": len(choose) or None,
        "tried": [{**asdict(one.trial), metric: one.score} for one in tried] or None,
    }
    count = learned.count() + (len(choose) if learned is part else 0)
    return Answers(logits_of(classifier, found.x, config).numpy(), found.y, settings, count)


def trials_of(config: ClassifierConfig) -> list[Trial]:
    """All combinations of what is to be tried, each once."""
    values = (sorted(set(tried)) for tried in (config.epochs, config.base_lrs, config.weight_decays))
    return [Trial(*combination) for combination in product(*values)]


def _diverged(config: ClassifierConfig) -> str:
    rates = ", ".join(f"{rate:g}" for rate in config.base_lrs)
    return (
        f"The training diverged with every learning rate that was tried (base_lrs {rates}). Try lower ones."
    )


def _try(
    encoder: Encoder,
    images: Labelled,
    choose: Images,
    trials: Sequence[Trial],
    config: ClassifierConfig,
    metric: str,
    *,
    frozen: bool,
    seed: int,
) -> list[_Tried]:
    """Train some trials together and score each on held-out images."""
    tuned = encoder if frozen else copy.deepcopy(encoder)
    classifiers = fit(tuned, images, trials, config, frozen=frozen, seed=seed)
    if not sound(tuned, images):
        return [
            _Tried(trial, classifier, None, 0.0)
            for trial, classifier in zip(trials, classifiers, strict=True)
        ]
    features = embed(tuned, choose, workers=images.workers)
    assert features.y is not None
    tried = []
    for trial, classifier in zip(trials, classifiers, strict=True):
        logits = logits_of(classifier, features.x, config)
        score = measure(metric, logits.numpy(), features.y) if finite(classifier) else None
        tried.append(
            _Tried(trial, classifier, score, F.cross_entropy(logits, torch.from_numpy(features.y)).item())
        )
        logger.info("epochs %g, base_lr %g, weight_decay %g: %s %s", *asdict(trial).values(), metric, score)
    return tried


def sound(encoder: Encoder, images: Labelled) -> bool:
    """Whether training ended in finite numbers: in the weights, and in what they make of a few images in eval mode."""
    [(crops, _)] = replace(images, workers=0).batches(encoder.info.image_size, 8, 1, (1.0, 1.0), seed=0)
    return finite(encoder) and bool(encoder(crops).isfinite().all())


def finite(module: nn.Module) -> bool:
    """Whether all weights and buffers are finite numbers."""
    return all(bool(t.isfinite().all()) for t in module.state_dict().values())


def check(encoder: Encoder, train: Images, test: Images | Features) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The train images' labels. Raises before any work what `train_classifier` promises to raise."""
    check_encoder(encoder)
    for role, images in (("train", train), ("test", test)):
        if isinstance(images, Images):
            check_channels(encoder, images, role)
    labels = train.labels
    if labels is None:
        raise DataError(
            f"{train.description} carry no labels to learn from. Give images whose classes are known."
        )
    if len(np.unique(labels)) < 2:
        raise DataError(
            f"Only one class occurs among {train.description}; expected at least two to learn from."
        )
    if not finite(encoder):
        raise DataError(
            "The encoder's weights hold NaN or infinity: they are damaged or diverged. Take another checkpoint."
        )
    return labels

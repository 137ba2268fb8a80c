"""Protocols that train on labels: linear evaluation by SGD, fine-tuning on few or all labels.

Settings are chosen on validation images, a part of the training images. Test images are predicted once, at
the end, and their labels are not read.
"""

import copy
import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import groupby, product
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from byol.data.images import Images
from byol.encoders.encoder import Encoder, device_of
from byol.errors import DataError, TrainingError
from byol.evaluation.classifier import Classifier, LinearClassifier, names_of
from byol.evaluation.inputs import Predictions, labels_of
from byol.evaluation.metrics import BLOCK, measure, predict
from byol.evaluation.sgd import ClassifierConfig, Trial, batch_size_for, finite, fit, logits_of
from byol.evaluation.subsets import Amount, few, validation_split
from byol.evaluation.train_batches import TrainImages
from byol.features.embed import check_encoder, embed
from byol.features.features import Features, tensor_of
from byol.machine import settle
from byol.world import World

logger = logging.getLogger("byol")
MOST_VALIDATION = 10_009  # images, as in the paper

LINEAR_SGD = ClassifierConfig(base_lrs=(0.05, 0.1, 0.2, 0.3, 0.4), epochs=(80.0,), batch_size=1024)
SEMI = ClassifierConfig(base_lrs=(0.01, 0.05, 0.2), epochs=(50.0,), validation_share=0.2)
FINETUNE = ClassifierConfig(base_lrs=(0.01, 0.05, 0.2), epochs=(10.0,))


class Tried(NamedTuple):
    """A trained trial and how it did on the validation images."""

    trial: Trial
    classifier: nn.Linear | None  # None when the training diverged
    score: float | None = None
    loss: float = 0.0  # decides between equal scores, which are frequent among few images


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
    protocol: str = "",
) -> Predictions:
    """Train a classifier on so many labels, unless `frozen` a copy of the encoder with it, and predict.

    Settings are chosen by the metric on a validation part of those labels; no other is seen. On a frozen
    encoder the classifier that does best there predicts; fine-tuning starts again with the chosen
    settings, on all of them. `test` may be the frozen encoder's features. Raises DataError for images
    without labels, of one class or of other channels, TrainingError when nothing converges.
    """
    check_encoder(encoder)
    train, test = encoder.open(train), test if isinstance(test, Features) else encoder.open(test)
    if not finite(encoder):
        raise DataError("The encoder's weights hold NaN or infinity. Take another checkpoint.")
    labels, device = labels_of(train, learned=True), device_of(encoder)
    if amount is not None:
        rows = few(labels, amount, seed, train.classes)
        train, labels = train.subset(rows), labels[rows]
    if device.type == "cpu":
        settle()
    config = replace(config, precision=config.precision or World(0, 1, device).default_precision())
    values = (sorted(set(tried)) for tried in (config.epochs, config.base_lrs, config.weight_decays))
    trials = [Trial(*combination) for combination in product(*values)]
    share = min(config.validation_share, MOST_VALIDATION / len(train)) if len(trials) > 1 else 0.0
    learn, validate = validation_split(labels, share, seed)
    every = learned = TrainImages.open(train, device, workers)
    validate = every.readable(validate)
    part, validation = every.subset(learn), train.subset(validate)
    best, tried, tuned = Tried(trials[len(trials) // 2], None), list[Tried](), encoder
    if len(validate):
        for _, group in groupby(trials, lambda trial: trial.epochs if frozen else trial):
            together = list(group)
            copied = encoder if frozen else copy.deepcopy(encoder)
            classifiers = fit(copied, part, together, config, frozen=frozen, seed=seed)
            features = embed(copied, validation, workers=workers) if any(classifiers) else None
            for trial, classifier in zip(together, classifiers, strict=True):
                one = Tried(trial, classifier)
                if classifier is not None and features is not None:
                    logits = partial(logits_of, classifier, config=config)
                    one = Tried(trial, classifier, *judged(logits, features, every.classes, metric))
                logger.info("epochs %g, base_lr %g, weight_decay %g: %s %s", *trial, metric, one.score)
                tried.append(one)
        best = max(tried, key=lambda one: (-1.0, 0.0) if one.score is None else (one.score, -one.loss))
    elif len(trials) > 1:
        words = "There are no images to choose settings on, so the middle ones of %d are taken."
        logger.warning(words, len(trials))
    classifier = best.classifier
    if frozen and classifier is not None:
        learned = part
    elif not tried or classifier is not None:  # from the start again, on all labels
        tuned = encoder if frozen else copy.deepcopy(encoder)
        [classifier] = fit(tuned, every, [best.trial], config, frozen=frozen, seed=seed)
    if classifier is None:
        rates = ", ".join(f"{rate:g}" for rate in config.base_lrs)
        raise TrainingError(
            f"The training diverged with every learning rate (base_lrs {rates}). Try lower ones."
        )
    found = test if isinstance(test, Features) else embed(tuned, test, workers=workers)
    settings = {
        "optimizer": "SGD, Nesterov momentum 0.9, cosine",
        **best.trial._asdict(),
        "batch_size": batch_size_for(len(learned), config.batch_size),
        **{name: getattr(config, name) for name in ("crop_area", "logit_cap", "logit_penalty", "precision")},
        "validation_images": len(validate) or None,
        "tried": [{**one.trial._asdict(), metric: one.score} for one in tried] or None,
    }
    count = learned.count() + (len(validate) if learned is part else 0)
    head = LinearClassifier(classifier.weight, classifier.bias, logit_cap=config.logit_cap)
    classes = head.predict(tensor_of(found.x), every.classes)
    said = Classifier(tuned, head, names_of(train.classes, every.classes), protocol=protocol)
    return Predictions(classes.numpy(), found.y, settings, count, said)


def judged(
    logits: Callable[[Tensor], Tensor], features: Features, classes: Tensor, metric: str
) -> tuple[float, float]:
    """The metric and the summed loss of logits of validation images."""
    x, y, size = tensor_of(features.x), labels_of(features), max(1, BLOCK // len(classes))
    found = predict(x, logits, classes, width=len(classes), count=1)
    blocks = zip(x.split(size), torch.searchsorted(classes, tensor_of(y)).split(size), strict=True)
    losses = (F.cross_entropy(logits(rows), columns, reduction="sum").item() for rows, columns in blocks)
    return measure(metric, found.numpy(), y), sum(losses)

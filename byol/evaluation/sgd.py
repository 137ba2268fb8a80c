"""A linear classifier trained with SGD on an encoder that is frozen (linear evaluation) or trained with it (fine-tuning).

Both are one loop, `fit`. On a frozen encoder the classifiers of all settings that are tried learn side by side, from the
same features.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from byol.encoders.encoder import Encoder
from byol.errors import ConfigError
from byol.evaluation.train_batches import Labelled, cross_entropy
from byol.method.draws import Stream, seed_of
from byol.method.heads import init_truncated
from byol.method.lars import parameter_groups
from byol.method.pixels import normalise_, to_float
from byol.method.schedules import learning_rate
from byol.world import Precision, World, autocast


@dataclass(frozen=True)
class ClassifierConfig:
    """How a classifier is trained; where there are several values, all combinations are tried."""

    base_lrs: tuple[float, ...]
    """Learning rates per 256 images; each falls to 0 by a cosine."""
    epochs: tuple[float, ...]
    """Passes over the images."""
    weight_decays: tuple[float, ...] = (0.0,)
    """Weight decays, to be divided by the learning rate (paper §D.3); biases and BatchNorm are exempt."""
    batch_size: int = 256
    """Images per step; fewer where there are few images."""
    held_out: float = 0.1
    """Share of the training images (at most 10,009) that is held out to choose on."""
    crop_area: tuple[float, float] = (0.08, 1.0)
    """Smallest and largest share of an image that a training crop takes."""
    logit_cap: float | None = None
    """Squash logits into (-cap, cap) by a tanh; 20 in the paper's Table 7."""
    logit_penalty: float = 0.0
    """Weight of the mean squared logit in the loss; 0.01 in the paper's Table 7."""
    precision: Precision | None = None
    """bf16 or fp32 for the encoder's arithmetic. By default bf16 where the hardware has it and is faster with it."""

    def __post_init__(self) -> None:
        for name in ("base_lrs", "epochs", "weight_decays"):
            values = getattr(self, name)
            least = "0 or more" if name == "weight_decays" else "positive"
            good = all(0 < value < 1e30 or (value == 0 and name == "weight_decays") for value in values)
            _check(len(values) > 0 and good, name, values, f"at least one number, all {least} and below 1e30")
        _check(self.batch_size >= 2, "batch_size", self.batch_size, "at least 2")
        _check(0 <= self.held_out < 1, "held_out", self.held_out, "a share from 0 to less than 1")
        _check(
            0 < self.crop_area[0] <= self.crop_area[1] <= 1,
            "crop_area",
            self.crop_area,
            "two shares, the smaller first",
        )
        _check(
            self.logit_cap is None or 0 < self.logit_cap < 1e30,
            "logit_cap",
            self.logit_cap,
            "a positive number below 1e30",
        )
        _check(0 <= self.logit_penalty < 1e30, "logit_penalty", self.logit_penalty, "0 or more, below 1e30")


@dataclass(frozen=True)
class Trial:
    """One combination of what is tried."""

    epochs: float
    base_lr: float
    weight_decay: float


def fit(
    encoder: Encoder,
    images: Labelled,
    trials: Sequence[Trial],
    config: ClassifierConfig,
    *,
    frozen: bool,
    seed: int,
) -> list[nn.Linear]:
    """Train a linear classifier for each trial, side by side; unless frozen, the encoder with it, in place.

    All learn from the same augmented batches, and each learns what it would learn alone. The trials are of one length, and
    one alone when the encoder is not frozen. SGD with Nesterov momentum 0.9; the rate falls by a cosine. Everything
    random follows from the seed.
    """
    device = images.labels.device
    precision = config.precision or World(0, 1, device).default_precision()
    batch_size = batch_size_for(len(images), config.batch_size)
    total_steps = max(1, int(trials[0].epochs * len(images)) // batch_size)
    classifiers = [new_classifier(encoder.info.features, images.classes, seed).to(device) for _ in trials]
    generators = [
        torch.default_generator
    ]  # torch.manual_seed reseeds all GPUs, and only one's state is put back
    if device.type == "cuda":
        generators.append(torch.cuda.default_generators[device.index or 0])
    with torch.enable_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
        optimizer = sgd(classifiers, trials, batch_size, None if frozen else encoder.network)
        if not frozen:
            follow_faster(encoder.network, len(images) / batch_size)
        encoder.network.train(not frozen)
        batches = images.batches(encoder.info.image_size, batch_size, total_steps, config.crop_area, seed)
        for step, (crops, y) in enumerate(batches):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(
                    step,
                    base_lr=group["base_lr"],
                    batch_size=batch_size,
                    total_steps=total_steps,
                    warmup_steps=0,
                )
            for generator in generators:  # for dropout and the like
                generator.manual_seed(seed_of(seed, Stream.DROPOUT, step))
            view = normalise_(to_float(crops), encoder.info.mean, encoder.info.std)
            with torch.set_grad_enabled(not frozen), autocast(device, precision):
                representation = encoder.network(view)
            losses = [objective(one(representation.float()), y, config) for one in classifiers]
            torch.stack(losses).sum().backward()  # no loss touches another one's classifier
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    encoder.eval()
    return classifiers


def new_classifier(features: int, classes: int, seed: int) -> nn.Linear:
    """The classifier at step 0, a function of the seed, as in the official code: truncated normal weights, no bias."""
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(seed)  # of the CPU alone: torch.manual_seed reseeds all GPUs
        classifier = nn.Linear(features, classes)
        init_truncated(classifier.weight)
    nn.init.zeros_(classifier.bias)
    return classifier


def sgd(
    classifiers: Sequence[nn.Linear], trials: Sequence[Trial], batch_size: int, network: nn.Module | None
) -> torch.optim.SGD:
    """One optimizer for all classifiers, each with its own rate, and for the network if it is trained."""
    groups = []
    for classifier, trial in zip(classifiers, trials, strict=True):
        decay = trial.weight_decay / (trial.base_lr * batch_size / 256)
        for part in (classifier,) if network is None else (classifier, network):
            groups += [
                {**group, "base_lr": trial.base_lr} for group in parameter_groups(part, weight_decay=decay)
            ]
    return torch.optim.SGD(groups, lr=0.0, momentum=0.9, nesterov=True, foreach=True)


def follow_faster(network: nn.Module, steps_per_epoch: float) -> None:
    """Let BatchNorm's running statistics keep max(1 - 10 / steps per epoch, 0.9) of themselves in a step (paper §D.3)."""
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.momentum = min(10 / steps_per_epoch, 0.1)


def objective(logits: Tensor, y: Tensor, config: ClassifierConfig) -> Tensor:
    """The mean cross-entropy of (B, classes) and int64 (B,), and the penalty of paper Table 7, which counts every logit."""
    logits = capped(logits, config.logit_cap)
    loss = cross_entropy(logits, y)
    return loss + config.logit_penalty * logits.square().mean() if config.logit_penalty else loss


def capped(logits: Tensor, cap: float | None) -> Tensor:
    """cap * tanh(logits / cap), paper Table 7; without a cap the logits themselves."""
    return logits if cap is None else cap * torch.tanh(logits / cap)


@torch.no_grad()
def logits_of(
    classifier: nn.Linear, x: np.ndarray[Any, np.dtype[np.float32]], config: ClassifierConfig
) -> Tensor:
    """The logits (N, classes), on the host, of representations (N, D)."""
    parts = torch.from_numpy(x).split(4096)
    return torch.cat(
        [capped(classifier(part.to(classifier.weight.device)), config.logit_cap).cpu() for part in parts]
    )


def batch_size_for(images: int, most: int) -> int:
    """Small sets get small batches, about eight an epoch: a few large steps would not be enough to learn from them."""
    return min(most, max(16, images // 8))


def _check(holds: bool, name: str, value: object, expected: str) -> None:
    if not holds:
        raise ConfigError(f"{name} is {value}; expected {expected}.")

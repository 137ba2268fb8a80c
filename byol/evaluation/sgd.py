"""A linear classifier trained by SGD on a frozen encoder (linear evaluation), or with it (fine-tuning).

Both are one loop, `fit`. On a frozen encoder the classifiers of all settings learn side by side in one pass.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from byol.encoders.encoder import Encoder
from byol.evaluation.train_batches import TrainImages, cross_entropy
from byol.method.draws import Stream, seed_of
from byol.method.heads import init_truncated
from byol.method.lars import parameter_groups
from byol.method.pixels import normalise_, to_float
from byol.method.schedules import learning_rate
from byol.settings import Checked, ShareBelow1, TwoOrMore
from byol.world import Precision, World, autocast

# A limit is what is expected, and whether a value is that.
Cap = Annotated[float, "a positive number below 1e30", lambda value: 0 < value < 1e30]
Weight = Annotated[float, "0 or more, below 1e30", lambda value: 0 <= value < 1e30]
Positives = Annotated[
    tuple[float, ...],
    "at least one number, all positive and below 1e30",
    lambda values: values and all(0 < one < 1e30 for one in values),
]
Decays = Annotated[
    tuple[float, ...],
    "at least one number, all from 0 and below 1e30",
    lambda values: values and all(0 <= one < 1e30 for one in values),
]
Area = Annotated[
    tuple[float, float], "two shares, the smaller first", lambda area: 0 < area[0] <= area[1] <= 1
]


@dataclass(frozen=True)
class ClassifierConfig(Checked):
    """How a classifier is trained; where there are several values, all combinations are tried."""

    base_lrs: Positives  # per 256 images; each falls to 0 by a cosine
    epochs: Positives  # passes over the images
    weight_decays: Decays = (0.0,)  # over the rate (paper §D.3); not of biases and BatchNorm
    batch_size: TwoOrMore = 256  # images per step; fewer where there are few images
    validation_share: ShareBelow1 = 0.1  # of the training images, at most 10,009, that settings are chosen on
    crop_area: Area = (0.08, 1.0)  # smallest and largest share of an image in a training crop
    logit_cap: Cap | None = None  # squash logits into (-cap, cap) by a tanh; 20 in the paper's Table 7
    logit_penalty: Weight = 0.0  # weight of the mean squared logit in the loss; 0.01 in the paper's Table 7
    precision: Precision | None = None  # of the encoder; None is bf16 where the hardware is faster with it


class Trial(NamedTuple):
    """One combination of what is tried."""

    epochs: float
    base_lr: float
    weight_decay: float


def fit(
    encoder: Encoder,
    images: TrainImages,
    trials: Sequence[Trial],
    config: ClassifierConfig,
    *,
    frozen: bool,
    seed: int,
) -> list[nn.Linear | None]:
    """Train a linear classifier for each trial, side by side; unless frozen, the encoder with it, in place.

    All see the same augmented batches, and each learns what it would learn alone; one that diverged is
    None. The trials are of one length, and one alone when the encoder is not frozen. Everything follows
    from the seed.
    """
    device, info, network = images.labels.device, encoder.info, encoder.network
    precision = config.precision or World(0, 1, device).default_precision()
    batch_size = batch_size_for(len(images), config.batch_size)
    total_steps = max(1, int(trials[0].epochs * len(images)) // batch_size)
    lengths = {"batch_size": batch_size, "total_steps": total_steps, "warmup_steps": 0}
    classifiers = [new_classifier(info.features, len(images.classes), seed).to(device) for _ in trials]
    generators = [torch.default_generator]  # torch.manual_seed reseeds all GPUs, and one's state is put back
    if device.type == "cuda":
        generators.append(torch.cuda.default_generators[device.index or 0])
    with torch.enable_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
        optimizer = sgd(classifiers, trials, batch_size, None if frozen else network)
        for module in () if frozen else network.modules():
            if isinstance(module, _BatchNorm):  # keeps max(1 - 10 / steps per epoch, 0.9) of itself (§D.3)
                module.momentum = min(10 * batch_size / len(images), 0.1)
        network.train(not frozen)
        batches = images.batches(info.image_size, batch_size, total_steps, config.crop_area, seed)
        for step, (crops, y) in enumerate(batches):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, base_lr=group["base_lr"], **lengths)
            for generator in generators:  # for dropout and the like
                generator.manual_seed(seed_of(seed, Stream.DROPOUT, step))
            view = normalise_(to_float(crops), info.mean, info.std)
            with torch.set_grad_enabled(not frozen), autocast(device, precision):
                representation = network(view)
            losses = [objective(one(representation.float()), y, config) for one in classifiers]
            torch.stack(losses).sum().backward()  # no loss touches another one's classifier
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    encoder.eval()
    # The weights may be finite, and what they make of an image in eval mode, by BatchNorm's statistics, not.
    [(crops, _)] = replace(images, workers=0).batches(info.image_size, 8, 1, (1.0, 1.0), seed=0)
    sound = finite(encoder) and bool(encoder(crops).isfinite().all())
    return [one if sound and finite(one) else None for one in classifiers]


def finite(module: nn.Module) -> bool:
    """Whether all weights and buffers are finite numbers."""
    return all(bool(t.isfinite().all()) for t in module.state_dict().values())


def new_classifier(features: int, classes: int, seed: int) -> nn.Linear:
    """The classifier at step 0, from the seed, as in the official code: truncated normal weights, no bias."""
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
            own = parameter_groups(part, weight_decay=decay)
            groups += [{**group, "base_lr": trial.base_lr} for group in own]
    return torch.optim.SGD(groups, lr=0.0, momentum=0.9, nesterov=True, foreach=True)


def objective(logits: Tensor, y: Tensor, config: ClassifierConfig) -> Tensor:
    """The mean cross-entropy of (B, C) and int64 (B,), and the penalty on every logit of paper Table 7."""
    logits = capped(logits, config.logit_cap)
    loss = cross_entropy(logits, y)
    return loss + config.logit_penalty * logits.square().mean() if config.logit_penalty else loss


def capped(logits: Tensor, cap: float | None) -> Tensor:
    """cap * tanh(logits / cap), paper Table 7; without a cap the logits themselves."""
    return logits if cap is None else cap * torch.tanh(logits / cap)


@torch.no_grad()
def logits_of(classifier: nn.Linear, x: Tensor, config: ClassifierConfig) -> Tensor:
    """The logits (N, C), on the host, of representations (N, D)."""
    return capped(classifier(x.to(classifier.weight.device)), config.logit_cap).cpu()


def batch_size_for(images: int, most: int) -> int:
    """Small sets get small batches, about eight an epoch: a few large steps would not be enough."""
    return min(most, max(16, images // 8))

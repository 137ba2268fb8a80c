"""What a run is told: its settings, checked."""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from operator import le
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np

from byol.errors import ConfigError
from byol.method.draws import check_seed
from byol.method.views import ViewConfig
from byol.world import Precision

OptimizerName = Literal["lars", "sgd", "adamw"]
_NUMBERS = {int: "a whole number", float: "a finite number", bool: "True or False"}
_KINDS = {**_NUMBERS, str: "text", type(None): "nothing"}


def check(holds: bool, message: str) -> None:
    """Raise ConfigError with the message unless the condition holds."""
    if not holds:
        raise ConfigError(message)


def expect(config: Any, group: str, expected: str, holds: Callable[[Any], bool], *names: str) -> None:
    """Raise ConfigError for the first of these fields that is not as expected; None always is."""
    for name in names:
        value = getattr(config, name)
        check(value is None or holds(value), f"{group}{name} is {value}; expected {expected}.")


def at_least(config: Any, group: str = "", **limits: int) -> None:
    """Raise ConfigError for the first field below its limit."""
    for name, least in limits.items():
        expect(config, group, f"at least {least}", partial(le, least), name)


def conform(config: Any) -> None:
    """Make paths strings and numpy's numbers Python's. Raises ConfigError for a value of another type."""
    for name, hint in get_type_hints(type(config)).items():
        value = getattr(config, name)
        kinds = get_args(hint) if get_origin(hint) in (UnionType, Union) else (hint,)
        if isinstance(value, os.PathLike) and str in kinds:
            value = os.fspath(value)
        if isinstance(value, np.generic):
            value = value.item()
        if isinstance(value, list) and get_origin(hint) is tuple:  # as JSON has it
            value = tuple(value)
        fits = any(_is_a(value, kind) for kind in kinds)
        check(fits, f"{name} is {value!r}; expected {' or '.join(map(_in_words, kinds))}.")
        object.__setattr__(config, name, value)


def _is_a(value: Any, kind: Any) -> bool:
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if get_origin(kind) is tuple:
        parts = get_args(kind)
        return isinstance(value, tuple) and len(value) == len(parts) and all(map(_is_a, value, parts))
    if kind is float:
        return type(value) is int or (type(value) is float and math.isfinite(value))
    return type(value) is kind if kind is int else isinstance(value, get_origin(kind) or kind)


def _in_words(kind: Any) -> str:
    return " or ".join(map(str, get_args(kind))) or _KINDS.get(kind) or f"a {kind.__name__}"


@dataclass(frozen=True)
class ModelConfig:
    """The encoder's variant and the two heads."""

    stem: Literal["imagenet", "small"] | None = None
    """First layers of a ResNet: imagenet (7x7 stride 2, pooling) or small (3x3); by default by image_size."""
    padding: Literal["symmetric", "same"] | None = None
    """Padding of a ResNet: symmetric as in torchvision, or same as in TensorFlow and JAX."""
    last_gamma: float | None = None
    """Initial scale of each residual block's last BatchNorm: 1 in the paper, 0 for stable small networks."""
    width: int | None = None
    """Channels of the first stage of the small `convnet` encoder."""
    projection_size: int = 256
    """Outputs of projector and predictor."""
    projection_hidden_size: int = 4096
    """Hidden units of projector and predictor."""
    target_init: Literal["copy", "independent"] = "copy"
    """Start the target as a copy of the online network, or from a draw of its own as the official code."""
    joint_batchnorm: bool = False
    """Let both views share one pass and its BatchNorm statistics (not the paper's way)."""

    def __post_init__(self) -> None:
        conform(self)
        at_least(self, "model.", projection_size=1, projection_hidden_size=1)

    def encoder_options(self) -> dict[str, Any]:
        """The options that were given, by the names `build_encoder` knows."""
        names = ("stem", "padding", "last_gamma", "width")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


@dataclass(frozen=True)
class OptimConfig:
    """The optimizer, its schedule and the target's."""

    name: OptimizerName | None = None
    """lars (the paper's), sgd or adamw. By default adamw on a CPU, lars elsewhere."""
    base_lr: float | None = None
    """Learning rate per 256 images; the peak rate is base_lr x batch_size / 256."""
    predictor_lr: float = 1.0
    """The predictor's learning rate over the rest's: 1 in the paper, more helps short runs."""
    weight_decay: float | None = None
    """Weight decay of every parameter with more than one dimension; biases and BatchNorm are exempt."""
    momentum: float = 0.9
    """Momentum of lars and sgd; the first beta of adamw."""
    warmup_epochs: float | None = None
    """Epochs of linear warm-up from 0. By default 10, or a tenth of a shorter run."""
    base_tau: float | None = None
    """The target's tau at the start; it rises to 1 by a cosine."""
    accumulation: int = 1
    """Micro-batches whose gradients make one optimizer step (and one target update)."""

    def __post_init__(self) -> None:
        conform(self)
        expect(self, "optim.", "a positive number", lambda value: value > 0, "base_lr", "predictor_lr")
        expect(self, "optim.", "a number from 0 to less than 1", lambda value: 0 <= value < 1, "momentum")
        expect(self, "optim.", "a number from 0 to 1", lambda value: 0 <= value <= 1, "base_tau")
        at_least(self, "optim.", weight_decay=0, warmup_epochs=0, accumulation=1)


@dataclass(frozen=True)
class DataConfig:
    """How the images are read."""

    channels: int | None = None
    """Channels to read pictures with: 3 colour, 1 gray. By default colour; arrays keep their own number."""
    in_memory: bool | None = None
    """Keep all images as one tensor on the device. By default when they are small, of one size, and fit."""
    max_bad: float = 0.01
    """Share of unreadable images above which the run stops; up to it they are replaced and listed."""
    max_pixels: int | None = None
    """Largest picture that is decoded, in pixels, by default 64 million; larger ones count as unreadable."""
    black: float | None = None
    """Sample of pictures with more than 8 bits that is black. By default 0, or what the images suggest."""
    white: float | None = None
    """That which is white, such as 4095. By default what the images suggest."""

    def __post_init__(self) -> None:
        conform(self)
        expect(self, "data.", "1 (gray) or 3 (colour)", lambda value: value in (1, 3), "channels")
        expect(self, "data.", "a share from 0 to 1", lambda value: 0 <= value <= 1, "max_bad")
        at_least(self, "data.", max_pixels=1)


@dataclass(frozen=True)
class KnnConfig:
    """Scoring while training, when the images carry labels: kNN on a hold-out set."""

    hold_out_share: float = 0.02
    """Share of the labelled images that is scored, not trained on (at most 2,000); 0 scores nothing."""
    times: int = 10
    """How often during the run, the end included."""
    k: int = 20
    """Neighbours that vote."""
    temperature: float = 0.07
    """Votes weigh exp(cosine / temperature)."""

    def __post_init__(self) -> None:
        conform(self)
        expect(self, "knn.", "a share from 0 to less than 1", lambda value: 0 <= value < 1, "hold_out_share")
        expect(self, "knn.", "a positive number", lambda value: value > 0, "temperature")
        at_least(self, "knn.", times=1, k=1)


@dataclass(frozen=True)
class ProbeConfig:
    """The official online probe, when the images carry labels."""

    online: bool = False
    """Train a linear classifier beside BYOL on the representation; the encoder learns nothing from it."""

    def __post_init__(self) -> None:
        conform(self)


@dataclass(frozen=True)
class TrainConfig:
    """A whole run. What is left None is derived from the images and the hardware, printed, and stored."""

    out: str
    """Folder of the run: checkpoints, metrics and the encoder. An unfinished run in it is continued."""
    encoder: str | None = None
    """resnet18 ... resnet200 (x2, x3, x4), convnet, torchvision:NAME, timm:NAME, package.module:function."""
    hidden_layer: str | None = None
    """Layer that gives the representation, by name or index. By default what the network feeds its classifier,
    or its output when it has none; "output" takes that in any case."""
    image_size: int | None = None
    """Side of the views in pixels."""
    eval_size: int | None = None
    """Side at which images are scored and embedded. By default image_size."""
    epochs: float | None = None
    """Passes over the images."""
    batch_size: int | None = None
    """Images per optimizer step, over all processes and micro-batches."""
    budget: str | None = None
    """Training time to fit the schedule to, such as 90s, 20m or 8h; instead of epochs."""
    seed: int = 0
    """Number from which all randomness follows."""
    workers: int | None = None
    """Processes that decode photographs. By default the number of cores; images kept in memory need none."""
    device: str | None = None
    """cpu, cuda, cuda:N or mps. By default the GPU when there is one."""
    precision: Precision | None = None
    """bf16 or fp32 for the encoder's arithmetic. By default bf16 where the hardware is faster with it."""
    save_every_steps: int | None = None
    """Steps between checkpoints. By default twenty a run, and one after five minutes without."""
    keep_checkpoints: int = 2
    """Checkpoints kept, at least 2."""
    log_every_steps: int = 50
    """Steps between lines in metrics.jsonl. For each the loop waits until the device has done the step."""
    model: ModelConfig = field(default_factory=ModelConfig)
    views: ViewConfig = field(default_factory=ViewConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    data: DataConfig = field(default_factory=DataConfig)
    knn: KnnConfig = field(default_factory=KnnConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)

    def __post_init__(self) -> None:
        conform(self)
        check(self.out != "", "out is empty; expected a folder for the run, such as runs/a.")
        expect(self, "", "a positive number", lambda value: value > 0, "epochs")
        both = f"epochs={self.epochs} and budget={self.budget} both fix the length of the run. Give one."
        check(self.epochs is None or self.budget is None, both)
        if self.budget is not None:
            seconds_of(self.budget)
        at_least(self, image_size=8, eval_size=8, batch_size=2, workers=0)
        at_least(self, save_every_steps=1, keep_checkpoints=2, log_every_steps=1)
        check_seed(self.seed)


def seconds_of(duration: str) -> float:
    """Seconds in '90s', '20m', '1.5h' or '2d'."""
    try:
        seconds = float(duration[:-1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[duration[-1:].lower()]
    except (ValueError, KeyError):
        seconds = -1.0
    expected = "expected a number and a unit, such as 90s, 20m, 8h or 2d"
    check(0 < seconds < math.inf, f"budget is {duration!r}; {expected}.")
    return seconds

"""What a run is told: its settings, checked."""

import math
import re
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from operator import le
from typing import Annotated, Any, Literal

from byol.disk import parse_json
from byol.errors import ConfigError
from byol.method.draws import check_seed
from byol.method.views import ViewConfig
from byol.settings import (
    Checked,
    Count,
    NotNegative,
    Positive,
    Share,
    ShareAbove0,
    ShareBelow1,
    Side,
    TwoOrMore,
)
from byol.train.recipe import Kind
from byol.world import Precision

OptimizerName = Literal["lars", "sgd", "adamw"]
LoggerName = Literal["tensorboard", "wandb", "mlflow", "trackio"]


@dataclass(frozen=True)
class ModelConfig(Checked, group="model."):
    """The encoder's variant and the two heads."""

    stem: Literal["imagenet", "small"] | None = None
    """First layers of a ResNet: imagenet (7x7 stride 2, pooling) or small (3x3); by default by image_size."""
    padding: Literal["symmetric", "same"] | None = None
    """Padding of a ResNet: symmetric as in torchvision, or same as in TensorFlow and JAX."""
    last_gamma: float | None = None
    """Initial scale of each residual block's last BatchNorm: 1 in the paper, 0 for stable small networks."""
    width: int | None = None
    """Channels of the first stage of the small `convnet` encoder."""
    options: tuple[str, ...] = ()
    """Options of the encoder itself, each NAME=VALUE: of a timm: or torchvision: model or of your function
    what it takes, such as patch_size=4 embed_dim=192."""
    projection_size: Count | None = None
    """Outputs of projector and predictor. By default 256 as in the paper; on a CPU 128."""
    projection_hidden_size: Count | None = None
    """Hidden units of projector and predictor. By default 4096 as in the paper; on a CPU 1024."""
    whiten: bool | None = None
    """Half-whiten the features of the small `convnet` encoder once it is trained (not the paper's): of its
    hidden layer by default, and of nothing else."""
    target_init: Literal["copy", "independent"] = "copy"
    """Start the target as a copy of the online network, or from a draw of its own as the official code."""
    joint_batchnorm: bool = False
    """Let both views share one pass and its BatchNorm statistics (not the paper's way)."""
    use_momentum: bool = True
    """False is SimSiam (Chen & He 2020): the online network itself is the target, behind a stop-gradient."""
    linear_predictor: bool = False
    """A predictor of one layer (Tian et al., arXiv 2102.06810; not the paper's)."""
    head_batchnorm: bool = True
    """False leaves BatchNorm out of projector and predictor (Richemond et al., arXiv 2010.10241)."""
    ema_statistics: bool = False
    """Normalise the target by an average of the online network's BatchNorm statistics instead of by its
    batch (EMAN: Cai et al., arXiv 2101.08482; not the paper's)."""
    recompute: bool = False
    """Activation checkpointing, for networks that else do not fit: of a ResNet's or ViT's blocks only inputs
    are kept, and the rest is computed again for the gradient. The same numbers in a third more time."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.encoder_options()

    def encoder_options(self) -> dict[str, Any]:
        """The options that were given, by the names `build_encoder` knows.

        A value is read as JSON, or True or False; what is neither is text.
        """
        names = ("stem", "padding", "last_gamma", "width")
        found = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        for option in self.options:
            name, equals, value = option.partition("=")
            if not (name.isidentifier() and equals):
                raise ConfigError(f"model.options has {option!r}; expected NAME=VALUE, such as patch_size=4.")
            if name in ("name", "channels", "image_size"):  # arguments of build_encoder itself
                raise ConfigError(
                    f"model.options gives {name}, which --encoder, the images or --image-size give. For "
                    "a network that has such an option give a function of your own, package.module:function."
                )
            if name in found:
                raise ConfigError(f"model.options gives {name} once more: {option}. Give it once.")
            found[name] = value
            with suppress(ValueError):
                found[name] = parse_json({"True": "true", "False": "false"}.get(value, value))
        return found


@dataclass(frozen=True)
class OptimConfig(Checked, group="optim."):
    """The optimizer, its schedule and the target's."""

    name: OptimizerName | None = None
    """lars (the paper's), sgd or adamw. By default adamw on a CPU, lars elsewhere."""
    base_lr: Positive | None = None
    """Learning rate per 256 images; the peak rate is base_lr x batch_size / 256."""
    lr_scaling: Literal["linear", "sqrt"] = "linear"
    """How the peak rate follows from the batch: linear as in the paper, or sqrt, as is usual for AdamW:
    base_lr x sqrt(batch_size / 256)."""
    predictor_lr: Positive | None = None
    """The predictor's learning rate over the rest's. By default 1 as in the paper; on a CPU 10."""
    weight_decay: NotNegative | None = None
    """Weight decay of every parameter with more than one dimension; biases and BatchNorm are exempt."""
    momentum: ShareBelow1 = 0.9
    """Momentum of lars and sgd; the first beta of adamw."""
    beta2: ShareBelow1 = 0.95
    """The second beta of adamw: over how many steps it averages squared gradients."""
    clip: Positive | None = None
    """Largest norm of the gradient, as is usual for a ViT; a longer one is shortened (not the paper's)."""
    warmup_epochs: NotNegative | None = None
    """Epochs of linear warm-up from 0. By default 10, or a tenth of a shorter run."""
    base_tau: Share | None = None
    """The target's tau at the start; it rises to 1 by a cosine."""
    tau_batch: Count | None = None
    """Batch size that tau is meant for. With another one tau is raised to the power of batch_size over this:
    the EMA scaling rule (Busbridge et al. 2023; not the paper's)."""
    accumulation: Count = 1
    """Micro-batches whose gradients make one optimizer step (and one target update)."""


@dataclass(frozen=True)
class ExtraConfig(Checked, group="extra."):
    """Views beside the two: improvements of later papers, none of them the paper's."""

    local: Annotated[int, "at least 0", partial(le, 0)] = 0
    """Local views of each image, crops of 8 to 25 % of its area at 3/7 of the views' side. The online network
    alone sees them, with a predictor of their own (MULAN, arXiv 2602.05845)."""
    cutout: Annotated[int, "at least 0", partial(le, 0)] = 0
    """Cutout views of each image, a rectangle of 20 to 40 % of their area blanked; for the rest as local."""
    targets: Annotated[int, "at least 0", partial(le, 0)] = 0
    """More views that the target alone sees: the mean of its projections of all views but the predicting one
    is then what is predicted (as in FastSiam, Pototzky et al. 2022)."""


@dataclass(frozen=True)
class DataConfig(Checked, group="data."):
    """How the images are read."""

    channels: Annotated[int, "1 (gray) or 3 (colour)", (1, 3).__contains__] | None = None
    """Channels to read pictures with: 3 colour, 1 gray. By default colour; arrays keep their own number."""
    in_memory: bool | None = None
    """Keep all images in memory, as one tensor on the device when they are of one size and small. By default
    when they fit; for small views on a CPU, images of any size, shrunk to what such views need of them."""
    max_bad: Share = 0.01
    """Share of unreadable images above which the run stops; up to it they are replaced and listed."""
    max_pixels: Count | None = None
    """Largest picture that is decoded, in pixels, by default 62 million; larger ones count as unreadable.
    Half as many for transparency, more than 8 bits, WebP and progressive JPEG: they take twice the memory."""
    min_side: Count | None = None
    """Shortest side of a picture, in pixels, by default 1; those with a shorter one count as unreadable."""
    truncated: bool | None = None
    """Take pictures that are cut off as well, with gray where they are missing; else they are unreadable."""
    black: float | None = None
    """Sample of pictures with more than 8 bits that is black. By default 0, or what the images suggest."""
    white: float | None = None
    """That which is white, such as 4095. By default what the images suggest."""


@dataclass(frozen=True)
class KnnConfig(Checked, group="knn."):
    """Scoring while training, when the images carry labels: kNN on a hold-out set."""

    hold_out_share: ShareBelow1 = 0.02
    """Share of the labelled images that is scored, not trained on (at most 2,000); 0 scores nothing."""
    times: Count | None = None
    """How often during the run, the end included: 10 times, or as often as takes a tenth of it."""
    k: Count = 20
    """Neighbours that vote."""
    temperature: Positive = 0.07
    """Votes weigh exp(cosine / temperature)."""


@dataclass(frozen=True)
class ProbeConfig(Checked, group="probe."):
    """The official online probe, when the images carry labels."""

    online: bool = False
    """Train a linear classifier beside BYOL on the representation; the encoder learns nothing from it."""


@dataclass(frozen=True)
class TrainConfig(Checked):
    """A whole run. What is left None is derived from the images and the hardware, printed, and stored."""

    out: str
    """Folder of the run: checkpoints, metrics and the encoder. An unfinished run in it is continued."""
    encoder: str | None = None
    """resnet18 ... resnet200 (x2, x3, x4), convnet, torchvision:NAME, timm:NAME, package.module:function."""
    init: str | None = None
    """Weights to start from: a run, an encoder file, an official .pkl, torchvision:NAME, timm:NAME, or a file
    of weights for such an --encoder. Network, normalisation and size of images are then theirs."""
    hidden_layer: str | None = None
    """Layer that gives the representation, by name or index. By default what the network feeds its
    classifier, or its output when it has none; "output" takes that in any case."""
    kind: Kind | None = None
    """What the images are like, which decides the views: photos, gray (or nearly so), textures (surfaces,
    materials, microscopy: no up or down), aerial (from above), or paper for the paper's own views. By default
    photos or gray, as the images are. A number of views.* that is set to other than the paper's stays."""
    image_size: Side | None = None
    """Side of the views in pixels."""
    eval_size: Side | None = None
    """Side at which images are scored and embedded. By default image_size."""
    eval_crop: ShareAbove0 | None = None
    """Of such an image: the side of its central square, as a share of its shorter side; 1 takes the largest
    square. By default that of --init, or 0.875. Images that have eval_size already are taken whole."""
    epochs: Positive | None = None
    """Passes over the images."""
    batch_size: TwoOrMore | None = None
    """Images per optimizer step, over all processes and micro-batches."""
    budget: str | None = None
    """Training time to fit the schedule to, such as 90s, 20m or 8h; instead of epochs."""
    seed: int = 0
    """Number from which all randomness follows."""
    workers: Annotated[int, "at least 0", partial(le, 0)] | None = None
    """Processes that decode photographs. By default the number of cores; images kept in memory need none."""
    device: str | None = None
    """cpu, cuda, cuda:N or mps. By default the GPU when there is one."""
    precision: Precision | None = None
    """bf16 or fp32 for the encoder's arithmetic. By default bf16 where the hardware is faster with it."""
    save_every_steps: Count | None = None
    """Steps between checkpoints. By default twenty a run, and one after five minutes without."""
    keep_checkpoints: TwoOrMore = 2
    """Checkpoints kept, at least 2."""
    log_every_steps: Count = 50
    """Steps between lines in metrics.jsonl. For each the loop waits until the device has done the step."""
    log: tuple[LoggerName, ...] = ()
    """Programs that get the metrics too: tensorboard (files in the run's folder), wandb, mlflow, trackio."""
    on_collapse: Literal["stop", "warn"] = "stop"
    """When all images get the same representation: stop (saved, exit code 5), or say so and go on."""
    model: ModelConfig = field(default_factory=ModelConfig)
    views: ViewConfig = field(default_factory=ViewConfig)
    extra: ExtraConfig = field(default_factory=ExtraConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    data: DataConfig = field(default_factory=DataConfig)
    knn: KnnConfig = field(default_factory=KnnConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_seed(self.seed)
        if self.out == "":
            raise ConfigError("out is empty; expected a folder for the run, such as runs/a.")
        if self.budget is not None:
            seconds_of(self.budget)
            if self.epochs is not None:
                both = f"epochs={self.epochs} and budget={self.budget} both fix the length of the run"
                raise ConfigError(f"{both}. Give one.")


def seconds_of(duration: str) -> float:
    """Seconds in '90s', '20m', '1.5h' or '2d'."""
    found = re.fullmatch(r"(\d+\.?\d*|\.\d+)([smhd])", duration.lower())
    seconds = float(found[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[found[2]] if found else 0.0
    if not 0 < seconds < math.inf:
        expected = "expected a number and a unit, such as 90s, 20m, 8h or 2d"
        raise ConfigError(f"budget is {duration!r}; {expected}.")
    return seconds

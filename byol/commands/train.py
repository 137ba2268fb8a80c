"""`byol train`"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import tyro

from byol.data.images import Images
from byol.errors import CollapseError, ConfigError, is_first, show
from byol.models.build import is_own_code
from byol.report.pictures import report_at_the_end
from byol.settings import parse, preset_flags, preset_names
from byol.train.config import TrainConfig
from byol.train.log import keep
from byol.train.run import Run, pretrain
from byol.train.run_folder import RunFolder

HELP = """usage: byol train IMAGES --out FOLDER [FLAGS]

Learn an encoder from unlabelled images. What is left out is derived from the
images and the hardware, and printed. A run that was stopped is continued.

IMAGES               folder, list, .csv, .parquet, .tar, .zip, .npy or .npz
--out FOLDER         checkpoints, metrics, the encoder, its report
--preset NAME|YAML   a recipe, such as imagenet-300 or cifar10-cpu, or a run's
                     config.yaml; flags given beside it win

what to train
  --encoder NAME     resnet18 ... resnet200, convnet, timm:NAME,
                     torchvision:NAME, package.module:function
  --init WEIGHTS     start from a run, a file of weights, timm:NAME, ...
  --kind KIND        photos, gray, textures, aerial, paper: which views to draw
  --image-size INT   side of the views in pixels

how long
  --epochs FLOAT     passes over the images
  --budget TIME      or a time: 90s, 20m, 8h
  --batch-size INT   images per step, over all processes
  --optim.base-lr FLOAT   peak learning rate per 256 images

where
  --device NAME      cpu, cuda, cuda:N or mps
  --workers INT      processes that decode photographs
  --seed INT         number from which all randomness follows
  --log NAME ...     metrics also to tensorboard, wandb, mlflow, trackio

Rarer flags come in groups: --model. (network and heads), --views. (crops,
colour, blur), --extra. (further views), --optim. (optimizer, schedule, tau),
--data. (reading), --knn. and --probe. (scores while training). All of them:
byol train --help-all
"""


@dataclass(frozen=True)
class Train:
    images: tyro.conf.Positional[str]
    """Folder (nested to any depth), text file of paths, .csv, .parquet, .tar, .zip, .npy or .npz."""
    config: Annotated[TrainConfig, tyro.conf.arg(name="")]
    preset: str | None = None
    """A recipe by name, or a YAML file such as a run's config.yaml; flags given beside it win."""


def train(arguments: Sequence[str]) -> int:
    """Train an encoder and say where it is and how good it is."""
    if {"-h", "--help"} & {*arguments}:
        print(HELP, end="")
        return 0
    arguments = ["--help" if word == "--help-all" else word for word in arguments]
    description = (
        "Learn an encoder from unlabelled images. Only IMAGES and --out are needed; what is left out is "
        "derived from the images and the hardware, and printed. A run that was stopped is continued. "
        f"Presets: {', '.join(preset_names())}."
    )
    command = parse(Train, with_preset(list(arguments)), prog="byol train", description=description)
    name = command.config.encoder
    if name is not None and is_own_code(name) and not {name, f"--encoder={name}"} & set(arguments):
        raise ConfigError(
            f"The preset {command.preset} names {name!r} as its encoder, which is not imported because a "
            f"file says so. Give --encoder {name} beside it."
        )
    try:
        run = pretrain(None, command.images, command.config)
    except CollapseError:
        if is_first():
            report_at_the_end(Path(command.config.out))
        raise
    if is_first():
        conclude(run)
    return 0


def with_preset(words: list[str]) -> list[str]:
    """The arguments with a preset's flags in front, where the user's own flags win over them."""
    given = {word.partition("=")[0].replace("_", "-") for word in words}
    named = [after for word, after in pairwise(words) if word == "--preset"]
    named += [word.partition("=")[2] for word in words if word.startswith("--preset=")]
    if not named:
        return words
    flags = preset_flags(named[-1])
    lengths = {"--budget", "--epochs"}
    for flag in lengths - given:  # a length that is given takes the place of the preset's, of either kind
        if given & lengths and flag in flags:
            place = flags.index(flag)
            del flags[place : place + 2]
    return flags + words


def conclude(run: Run) -> None:
    """What a person wants to know after a run; train.log keeps it too."""

    def say(line: str) -> None:
        keep(RunFolder(run.folder).transcript, line)
        show(line)

    info = run.encoder.info
    what = f"{run.plan.encoder}, {info.features}-dimensional features"
    say(f"encoder    {RunFolder(run.folder).encoder} ({what})")
    if run.verdict is not None and run.verdict.knn:
        say(f"hold-out   {run.verdict.knn}")
    assert isinstance(run.images, Images)  # no command brings views of its own
    if (written := report_at_the_end(run.folder, run.images, run.encoder)) is not None:
        say(f"report     {written}")
    # A file alone never makes a program run code.
    named = [str(run.folder)]
    named += ["--encoder", str(info.architecture)] if is_own_code(info.architecture or "") else []
    say(f"next       byol evaluate {shlex.join(named)} --train LABELLED_TRAIN --test LABELLED_TEST")
    say(f"           byol embed {shlex.join(named)} --data IMAGES --out features.npz")

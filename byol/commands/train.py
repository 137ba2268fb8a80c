"""`byol train`"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from byol.encoders.load import from_a_library
from byol.settings import parse, preset_flags, preset_names
from byol.train.config import TrainConfig
from byol.train.run import Run, pretrain


@dataclass(frozen=True)
class Train:
    images: tyro.conf.Positional[str]
    """Folder (nested to any depth), text file of paths, .parquet, .npy or .npz."""
    config: Annotated[TrainConfig, tyro.conf.arg(name="")]
    preset: str | None = None
    """A recipe by name, or a YAML file such as a run's config.yaml; flags given beside it win."""


def train(arguments: Sequence[str]) -> int:
    """Train an encoder and say where it is and how good it is."""
    words = with_preset(list(arguments))
    description = (
        "Learn an encoder from unlabelled images. Only IMAGES and --out are needed; what is left out is derived from the "
        f"images and the hardware, and printed. A run that was stopped is continued. Presets: {', '.join(preset_names())}."
    )
    command = parse(Train, words, prog="byol train", description=description)
    report(pretrain(None, command.images, command.config))
    return 0


def with_preset(words: list[str]) -> list[str]:
    """The arguments with a preset's flags in front, where the user's own flags win over them."""
    name = None
    for place, word in enumerate(words):
        if word == "--preset" and place + 1 < len(words):
            name = words[place + 1]
        elif word.startswith("--preset="):
            name = word.partition("=")[2]
    if name is None:
        return words
    flags = preset_flags(name)
    given = {word.partition("=")[0].replace("_", "-") for word in words}
    for length in {
        "--budget",
        "--epochs",
    } - given:  # a length that is given takes the place of the preset's, of either kind
        if given & {"--budget", "--epochs"} and length in flags:
            place = flags.index(length)
            del flags[place : place + 2]
    return flags + words


def report(run: Run) -> None:
    """What a person wants to know after a run."""
    print(
        f"encoder    {run.folder / 'encoder.safetensors'} ({run.plan.encoder}, {run.encoder.info.features} features)"
    )
    if run.score is not None:
        print(f"kNN        {100 * run.score.value:.1f} % of {run.score.test_images:,} held-out images")
    name = run.encoder.info.encoder
    own = (
        "" if from_a_library(run.encoder.info) else f" --encoder {name}"
    )  # a file alone never makes a program run code
    print(f"next       byol evaluate {run.folder}{own} --train LABELLED_TRAIN --test LABELLED_TEST")
    print(f"           byol embed {run.folder}{own} --data IMAGES --out features.npz")

"""`byol train`"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

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
    if any(word.partition("=")[0] == "--budget" for word in words) and "--epochs" in flags:
        place = flags.index("--epochs")  # a time budget takes the place of the preset's length
        del flags[place : place + 2]
    return flags + words


def report(run: Run) -> None:
    """What a person wants to know after a run."""
    print(f"encoder    {run.folder / 'encoder.safetensors'} ({run.plan.encoder}, {run.encoder.info.features} features)")
    if run.score is not None:
        print(f"kNN        {100 * run.score.value:.1f} % of {run.score.test_images:,} held-out images")
    print(f"next       byol evaluate {run.folder} --train LABELLED --test LABELLED")
    print(f"           byol embed {run.folder} --data IMAGES --out features.npz")

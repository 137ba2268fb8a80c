"""`byol predict`"""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from byol.commands.embed import kept_in, progress_of
from byol.disk import at_once, check_writable
from byol.errors import ConfigError, show
from byol.evaluation.classifier import COLUMNS, load_classifier
from byol.features.embed import store_beside
from byol.settings import parse
from byol.train.signals import StopSignals
from byol.world import World

SHOWN = 12  # classes that are counted for people, the most frequent first


@dataclass(frozen=True)
class Predict:
    classifier: tyro.conf.Positional[str]
    """What `byol evaluate ... --save-classifier FILE` wrote."""
    data: str
    """Images: folder, text file of paths, .csv, .parquet, .tar, .zip, .npy or .npz."""
    out: str
    """File for the predictions: .csv with the columns path, class, probability."""
    all: bool = False
    """Add a column for every class, with its probability."""
    encoder: str | None = None
    """package.module:function that builds the network, for a run that trained one of your own."""
    device: str | None = None
    """cpu, cuda, cuda:N or mps. By default the GPU when there is one."""
    workers: int = 0
    """Processes that decode images."""


def predict(arguments: Sequence[str]) -> int:
    """Write the class of every image."""
    description = (
        "Say which class every image is of, and how probable. What a large job has done is kept beside --out "
        "until it is finished: the same command continues it."
    )
    command = parse(Predict, arguments, prog="byol predict", description=description, switches=True)
    out = Path(command.out)
    check_out(out, command.data)
    with StopSignals() as stop, World.join(command.device, alone=True) as world:
        classifier = load_classifier(command.classifier, net=command.encoder, device=str(world.device))
        images = classifier.encoder.open(command.data)
        with store_beside(out, classifier.encoder, images, False, world) as store:
            progress = progress_of(stop, kept_in(store), world)
            found = classifier.predict(images, workers=command.workers, store=store, progress=progress)
            found.save(out, every_class=command.all)
    counts = Counter(found.classes[one] for row in range(len(found)) for one in found.found(row))
    for name, count in counts.most_common(SHOWN):
        show(f"{count:10,} {name}")
    if len(counts) > SHOWN:
        show(f"{'...':>10} and {len(counts) - SHOWN:,} other classes")
    if len(found) < len(images):
        show(f"left out   {len(images) - len(found):,} of {len(images):,} images, which cannot be read")
    show(f"written    {out}: {len(found):,} images, of {len(classifier.classes):,} classes known")
    return 0


def check_out(out: Path, data: str) -> None:
    """Raise ConfigError, before any work, for a file that cannot be written, or that would be lost."""
    if out.suffix != ".csv" or os.path.isdir(out):
        raise ConfigError(f"--out is {out}; expected the name of a .csv file.")
    if os.path.exists(out):
        with open(out, "rb", opener=at_once) as file:  # a pipe has nothing
            start = file.read(256)
        written = (start or b"").startswith(",".join(COLUMNS).encode())
        if not written or (os.path.exists(data) and os.path.samefile(out, data)):
            raise ConfigError(
                f"--out is {out}, which is there already and is not replaced. Give another name."
            )
    check_writable(out.parent, name=out.name)

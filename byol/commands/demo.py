"""`byol demo`: the whole job in two minutes, on photographs that are already here."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count

from byol.data.demo_images import photograph_tiles
from byol.data.images import open_images
from byol.encoders.encoder import Encoder
from byol.encoders.load import untrained
from byol.errors import show
from byol.evaluation.confusion import confusion, write_confusion
from byol.evaluation.protocols import EvaluationConfig, judge, prepare, protocols_named, settled
from byol.evaluation.score import write_scores
from byol.features.embed import Features, embed
from byol.report.pictures import report_at_the_end
from byol.settings import parse, preset_flags
from byol.train.config import TrainConfig
from byol.train.log import duration
from byol.train.run import pretrain
from byol.train.run_folder import RunFolder

NEIGHBOURS = 1  # that vote: a photograph has tiles of many kinds, and few of each


@dataclass(frozen=True)
class Demo:
    out: str | None = None
    """Folder of the run. By default runs/demo, or the next runs/demo-2, runs/demo-3, ... that is free or
    was stopped.
    """
    seed: int = 0
    """Number from which all randomness follows."""


def demo(arguments: Sequence[str]) -> int:
    """Train on tiles of photographs and show what raw pixels, an untrained and the trained encoder know."""
    description = "See BYOL learn: about two minutes on two cores, no network."
    command = parse(Demo, arguments, prog="byol demo", description=description)
    tiles = photograph_tiles()
    train, test = open_images(tiles.train), open_images(tiles.test)
    out = command.out or free_folder()
    config = parse(TrainConfig, ["--out", out, *preset_flags("demo")], prog="byol demo", description="")
    show(
        f"{len(train):,} tiles of {len(tiles.names)} photographs, without labels. Afterwards: which",
        f"photograph does a tile come from? {len(test):,} test tiles, of squares that training never sees.",
        "",
    )
    started = time.perf_counter()
    run = pretrain(None, train, replace(config, seed=command.seed))
    seconds, folder = time.perf_counter() - started, RunFolder(out)

    def score(name: str, encoder: Encoder | None) -> float:
        """Of an encoder or, with none, of the pixels; kept in the run's folder for its report."""
        bank, queries = (
            Features(images.reshape(len(images), -1).astype("float32"), labels, classes=tiles.names)
            if encoder is None
            else replace(embed(encoder, open_images(images)), y=labels, classes=tiles.names)
            for images, labels in ((tiles.train, tiles.train_labels), (tiles.test, tiles.test_labels))
        )
        settings = EvaluationConfig(k=(NEIGHBOURS,))
        task = prepare(None, bank, queries, protocols_named("knn", settings), settings, name=name)
        ((protocol, found),) = judge(task)
        write_scores({protocol: found}, folder.scores)
        if (mistakes := confusion(task, found)) is not None and encoder is run.encoder:
            write_confusion(mistakes, folder.confusions)
        return found.value

    fresh = settled(untrained(run.encoder, seed=command.seed), open_images(tiles.train))
    show(
        "",
        f"kNN accuracy (k = {NEIGHBOURS}) on {len(test):,} test tiles of {len(tiles.names)} photographs "
        f"(chance {1 / len(tiles.names):.2f})",
        f"  raw pixels          {score('pixels', None):.2f}",
        f"  untrained encoder   {score('untrained', fresh):.2f}",
        f"  trained encoder     {score(out, run.encoder):.2f}   after {duration(seconds)} of training",
        "",
        f"The encoder is {folder.encoder}.",
    )
    if (written := report_at_the_end(run.folder, train, run.encoder)) is not None:
        show(f"The report is {written}: open it in a browser.")
    show("Next, with images of your own:", "  byol train IMAGES --out runs/mine")
    return 0


def free_folder() -> str:
    """runs/demo, or the first runs/demo-N that is not there yet or holds a run that was stopped."""
    folders = (RunFolder(f"runs/demo{'' if n == 1 else f'-{n}'}") for n in count(1))
    stopped_or_new = (
        one for one in folders if not one.path.exists() or (one.plan.exists() and not one.encoder.exists())
    )
    return str(next(stopped_or_new).path)

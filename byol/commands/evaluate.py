"""`byol evaluate`"""

import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import tyro

from byol.disk import check_writable, writing
from byol.encoders.encoder import Encoder
from byol.encoders.load import OwnNetwork, folder_of, load_encoder
from byol.errors import ConfigError, did_you_mean
from byol.evaluation.baselines import BASELINES
from byol.evaluation.data_sets import DataSet, read_data_sets
from byol.evaluation.inputs import EvaluationConfig
from byol.evaluation.protocols import Task, check_protocols, check_settings, judge, prepare
from byol.evaluation.score import SCORES, Score, comparison, score_table, write_scores
from byol.models.build import LIBRARIES
from byol.settings import parse

logger = logging.getLogger("byol")


@dataclass(frozen=True)
class Evaluate:
    run: tyro.conf.Positional[str]
    """Run folder, encoder.safetensors, official .pkl, or torchvision:NAME or timm:NAME with pretrained weights."""
    train: str | None = None
    """Labelled images that the protocols learn from."""
    test: str | None = None
    """Labelled images that are scored; nothing is chosen on them."""
    transfer: str | None = None
    """YAML file of data sets, instead of --train and --test: NAME: {train: PATH, test: PATH, metric: METRIC}."""
    protocols: tuple[str, ...] = ("knn", "linear")
    """knn (k nearest votes), linear (logistic regression, L-BFGS), linear-sgd (SGD on crops and flips), finetune (the encoder
    too, on all labels) or on few: semi-1, semi-10, semi-25-per-class. Settings are chosen on a part of the training images."""
    settings: tyro.conf.OmitArgPrefixes[EvaluationConfig] = field(default_factory=EvaluationConfig)
    compare: tuple[str, ...] = ()
    """Other runs, encoder files or names beside it, and the baselines pixels, untrained and supervised."""
    seed: int = 0
    """Number from which all randomness follows."""
    seeds: int = 1
    """How often to repeat what is random, with the seeds that follow."""
    weights: str | None = None
    """File of a torchvision: or timm: network's tensors; by default what the library has downloaded before."""
    out: str | None = None
    """Folder for scores.jsonl and kept features; by default that of the run or encoder file."""
    no_cache: bool = False
    """Do not keep the features for the next time, which is done in the folder's features/."""
    encoder: str | None = None
    """package.module:function that builds the network, for a run that trained one of your own."""
    device: str | None = None
    """cpu, cuda, cuda:N or mps. By default the GPU when there is one."""
    workers: int = 0
    """Processes that decode images."""


@dataclass(frozen=True)
class Contestant:
    """An encoder in a comparison."""

    encoder: Encoder
    protocols: tuple[str, ...]
    folder: Path | None  # of its scores and features
    anew: Callable[[int], Encoder] | None = None  # makes it again for each seed


def evaluate(arguments: Sequence[str]) -> int:
    """Score an encoder, perhaps beside others, and add the scores to its folder."""
    description = "Say how good an encoder's features are, with labelled images."
    command = parse(Evaluate, arguments, prog="byol evaluate", description=description, switches=True)
    check_protocols(command.protocols)
    check_settings(command.protocols, command.settings)
    sets, found = data_sets(command), contestants(command)
    # Everything is opened and checked before anything is computed.
    tasks = [(each, set_, task(command, name, each, set_)) for name, each in found.items() for set_ in sets]
    scores: dict[str, dict[str, Score]] = {name: {} for name in found}
    written: dict[Path, None] = {}
    while tasks:
        each, set_, asked = tasks.pop(0)
        for name, score in judge(asked):  # each is kept at once: the next may take hours, or fail
            scores[asked.name][f"{set_.name} {name}".strip()] = score
            if each.folder is not None:
                written[keep({name: score}, each.folder)] = None
        if tasks:
            print(f"done       {asked.name} {set_.name}".rstrip(), file=sys.stderr)
    print(score_table(scores[command.run]) if len(scores) == 1 else comparison(scores))
    for path in written:
        print(f"written    {path}")
    if not written:
        print("written    nothing; --out FOLDER keeps the scores")
    return 0


def keep(scores: dict[str, Score], folder: Path) -> Path:
    """Add scores to the scores.jsonl of a folder, and return its path."""
    path = folder / SCORES
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_scores(scores, path)
    return path


def data_sets(command: Evaluate) -> list[DataSet]:
    """What to learn from and to score on."""
    if command.transfer is not None:
        if command.train is not None or command.test is not None:
            raise ConfigError("--transfer came together with --train or --test. Give one or the other.")
        return read_data_sets(command.transfer)
    if command.train is None or command.test is None:
        raise ConfigError(
            "--train and --test are needed: labelled images to learn from, others to score. Or --transfer FILE."
        )
    return [DataSet("", command.train, command.test)]


def contestants(command: Evaluate) -> dict[str, Contestant]:
    """The encoder to judge and those beside it, loaded, by the words they were given as."""
    if command.out is not None and os.path.exists(command.out) and not os.path.isdir(command.out):
        raise ConfigError(f"--out is {command.out}, which is a file. Give the name of a folder.")
    if (
        command.weights is not None
        and sum(word.startswith(LIBRARIES) for word in (command.run, *command.compare)) != 1
    ):
        raise ConfigError(
            "--weights is the file of one network; expected one torchvision:NAME or timm:NAME that it goes with."
        )
    main = opened(command.run, command)
    folder = folder_of(command.run) if command.out is None else Path(command.out)
    if folder is not None:
        check_writable(folder, "Name another folder with --out.")
    found = {command.run: Contestant(main, command.protocols, folder)}
    for word in command.compare:
        if word in found:
            raise ConfigError(f"--compare has {word}, which is there already. Name each encoder once.")
        baseline = BASELINES.get(word)
        if baseline is None and not word.startswith(LIBRARIES) and not os.path.exists(word):
            raise ConfigError(
                f"There is nothing at {word} to compare with.{did_you_mean(word, BASELINES)} Expected a run, an encoder "
                f"file, torchvision:NAME, timm:NAME, or a baseline: {', '.join(BASELINES)}."
            )
        if baseline is None:
            encoder, kept, protocols = opened(word, command), writable_folder_of(word), command.protocols
        else:
            encoder, kept = baseline.make(main, command.seed, command.encoder), folder
            protocols = baseline.scored_by(command.protocols)
            if not protocols:
                kind = (
                    "trains the encoder, such as semi-1"
                    if word == "supervised"
                    else "leaves it as it is, such as knn"
                )
                raise ConfigError(
                    f"The baseline {word} is scored by none of {', '.join(command.protocols)}. Add a protocol that {kind}."
                )
        found[word] = Contestant(
            encoder, protocols, kept, baseline.again(main, command.encoder) if baseline else None
        )
    return found


def opened(word: str, command: Evaluate) -> Encoder:
    """An encoder by its path or its name in a library; --encoder builds those that are a network of the user's own."""
    if word.startswith(LIBRARIES):
        return load_encoder(word, weights=command.weights, device=command.device)
    try:
        return load_encoder(word, device=command.device)
    except OwnNetwork:
        if command.encoder is None:
            raise
        return load_encoder(word, net=command.encoder, device=command.device)


def writable_folder_of(word: str) -> Path | None:
    """`folder_of` of an encoder that is only compared with; None, with a word about it, where nothing can be written."""
    folder = folder_of(word)
    if folder is not None:
        try:
            check_writable(folder, "Its scores are shown and not kept.")
        except ConfigError as failure:
            logger.warning("%s", failure)
            return None
    return folder


def task(command: Evaluate, name: str, each: Contestant, set_: DataSet) -> Task:
    """One encoder on one data set, checked."""
    return prepare(
        each.encoder,
        set_.train,
        set_.test,
        each.protocols,
        replace(command.settings, metric=set_.metric or command.settings.metric),
        seed=command.seed,
        seeds=command.seeds,
        workers=command.workers,
        cache=each.folder / "features" if not command.no_cache and each.folder is not None else None,
        name=name,
        data_set=set_.name,
        anew=each.anew,
    )

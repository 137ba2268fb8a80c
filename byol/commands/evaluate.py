"""`byol evaluate`"""

import logging
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import tyro

from byol.data.images import Images
from byol.disk import NOT_OWN, can_be_added_to, check_writable, writing
from byol.encoders.encoder import Encoder
from byol.encoders.load import OwnNetwork, folder_of, load_encoder
from byol.errors import ConfigError, did_you_mean, show
from byol.evaluation.confusion import CONFUSIONS, confusion, write_confusion
from byol.evaluation.data_sets import DataSet, read_data_sets
from byol.evaluation.protocols import (
    BASELINES,
    EvaluationConfig,
    Task,
    judge,
    prepare,
    protocols_named,
    settled,
)
from byol.evaluation.score import SCORES, write_scores
from byol.evaluation.tables import Scores, comparison
from byol.evaluation.verdict import MAJORITY, majority, verdict
from byol.features.features import Features
from byol.models.build import LIBRARIES
from byol.settings import parse
from byol.train.setup import check_same
from byol.world import World

logger = logging.getLogger("byol")
USUAL = ("pixels", "untrained")  # baselines that are scored without being requested


@dataclass(frozen=True)
class Evaluate:
    run: tyro.conf.Positional[str | None] = None
    """Run folder, encoder.safetensors, official .pkl, or torchvision:NAME or timm:NAME with pretrained
    weights. Not needed where --train and --test are files of features."""
    train: str | None = None
    """Labelled images that the protocols learn from, or their features as `byol embed` writes them."""
    test: str | None = None
    """Labelled images that are scored, or their features; nothing is chosen on them. Or a number, such as
    0.3: this share of every class of --train is scored instead of learned from."""
    transfer: str | None = None
    """YAML list of data sets, instead of --train and --test: NAME: {train: A, test: B, metric: METRIC}."""
    protocols: tuple[str, ...] = ("knn", "linear")
    """knn (k nearest votes), linear (logistic regression, L-BFGS), linear-sgd (SGD on crops and flips),
    finetune (the encoder too, on all labels) or on few: semi-1, semi-10, semi-25-per-class. Settings are
    chosen on a part of the training images."""
    settings: tyro.conf.OmitArgPrefixes[EvaluationConfig] = field(default_factory=EvaluationConfig)
    compare: tuple[str, ...] = ()
    """Other runs, encoder files or names beside it, and the baseline supervised."""
    no_baselines: bool = False
    """Leave out raw pixels and the untrained network, scored beside it but for --transfer, and the most
    frequent class."""
    seed: int = 0
    """Number from which all randomness follows."""
    seeds: int = 1
    """How often to repeat what is random, with the seeds that follow."""
    save_classifier: str | None = None
    """File (.safetensors) for the classifier that is scored, with its encoder, for `byol predict`. One of
    the --protocols, one of --seeds and of --k."""
    weights: str | None = None
    """File of a torchvision: or timm: network's tensors; by default what the library downloaded before."""
    eval_crop: float | None = None
    """Side of the central square that is taken of every image, as a share of its shorter side; 1 takes the
    largest. By default what the encoder was trained to be scored with, mostly 0.875."""
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


def evaluate(arguments: Sequence[str]) -> int:
    """Score an encoder, perhaps beside others, and add the scores to its folder."""
    description = "Say how good an encoder's features are, with labelled images."
    command = parse(Evaluate, arguments, prog="byol evaluate", description=description, switches=True)
    with World.join(command.device) as world, world.with_one_voice():
        if world.size > 1:
            command = replace(command, device=str(world.device))  # of several GPUs each takes its own
        with world.agreeing():
            check(command)
            tasks = tasks_of(command, world)
        with world.agreeing():  # that rank 0 is done, while the others wait
            score_all(command, tasks, world)
    return 0


def score_all(command: Evaluate, tasks: list[tuple[Path | None, Task]], world: World) -> None:
    """Do the tasks. The processes share the computing of features; rank 0 does all else, and tells."""
    if world.rank == 0:
        for words in dict.fromkeys(task.divided for _, task in tasks if task.divided):
            show(f"split      {words}", file=sys.stderr)
        if world.size > 1:
            shared = f"{world.size} share the computing of features; process 0 alone runs the protocols"
            show(f"processes  {shared}, and the others wait", file=sys.stderr)
    scores, written = dict[str, Scores](), dict[Path, None]()
    main, majorities, errors = command.run or "features", Scores(), list[str]()
    while tasks:
        folder, task = tasks.pop(0)
        for name, score in judge(task):  # each is kept at once: the next may take hours, or fail
            title = f"{score.data_set} {name}".strip()
            scores.setdefault(score.encoder_name, Scores())[title] = score
            errors_now = confusion(task, score)
            if score.encoder_name == main:
                errors = errors_now.lines() if errors_now and command.transfer is None else []
                if not command.no_baselines and (constant := majority(task, score)):
                    majorities[title] = constant
            if folder is not None:
                with writing(folder):
                    folder.mkdir(parents=True, exist_ok=True)
                if errors_now and score.encoder_name not in BASELINES:
                    write_confusion(errors_now, folder / CONFUSIONS)
                write_scores({name: score}, folder / SCORES)
                written[folder / SCORES] = None
        if tasks and world.rank == 0:
            show(f"done       {score.encoder_name} {score.data_set}".rstrip(), file=sys.stderr)
    if world.rank == 0:
        tell(command, scores | ({MAJORITY: majorities} if majorities else {}), errors, [*written])


def tell(command: Evaluate, scores: dict[str, Scores], errors: list[str], written: list[Path]) -> None:
    """Print the scores, what they mean, where they are, and what to type next."""
    table = repr(scores[command.run or "features"]) if len(scores) == 1 else comparison(scores)
    show(*table.splitlines(), *([""] if errors else []), *errors, "", *verdict(scores))
    for path in [*map(str, written)] or ["nothing; --out FOLDER keeps the scores"]:
        show(f"written    {path}")
    if command.save_classifier is not None:
        show(
            f"written    {command.save_classifier} ({os.path.getsize(command.save_classifier) / 1e6:,.1f} MB)"
        )
        next_words = ["byol", "predict", command.save_classifier, "--data", "IMAGES", "--out", "labels.csv"]
        next_words += ["--encoder", command.encoder] if command.encoder is not None else []
        show(f"next       {shlex.join(next_words)}")


def check(command: Evaluate) -> None:
    """Raise ConfigError for flags that do not go together."""
    words = [command.run or "features", *command.compare]
    if command.transfer is not None and (command.train is not None or command.test is not None):
        raise ConfigError("--transfer came together with --train or --test. Give one or the other.")
    if command.transfer is None and (command.train is None or command.test is None):
        raise ConfigError(
            "--train and --test are needed: images to learn from and to score. Of a single labelled folder "
            "--test 0.3 scores a part. Or --transfer FILE."
        )
    if command.transfer is not None and command.save_classifier is not None:
        raise ConfigError("--save-classifier keeps one classifier; it goes with --train and --test.")
    if command.out is not None and os.path.exists(command.out) and not os.path.isdir(command.out):
        raise ConfigError(f"--out is {command.out}, which is a file. Give the name of a folder.")
    if command.weights is not None and sum(word.startswith(LIBRARIES) for word in words) != 1:
        raise ConfigError(
            "--weights is of one network; expected one torchvision:NAME or timm:NAME it goes with."
        )
    if command.run is None and (command.compare or command.encoder):
        raise ConfigError("--compare and --encoder go with a run or an encoder file. Name it first.")
    for word in command.compare:
        if words.count(word) > 1:
            raise ConfigError(f"--compare has {word}, which is there already. Name each encoder once.")
        if not (word in BASELINES or word.startswith(LIBRARIES) or os.path.exists(word)):
            raise ConfigError(
                f"There is nothing at {word} to compare with.{did_you_mean(word, BASELINES)} Expected a run, "
                f"an encoder file, torchvision:NAME, timm:NAME, or a baseline: {', '.join(BASELINES)}."
            )


def check_kept(folder: Path, advice: str) -> None:
    """Raise ConfigError, before any work, where scores could not be added to a folder."""
    check_writable(folder, advice)
    for path in (folder / SCORES, folder / CONFUSIONS):
        if not can_be_added_to(path):
            raise ConfigError(f"Nothing can be added to {path}: {NOT_OWN}. {advice}")


def tasks_of(command: Evaluate, world: World) -> list[tuple[Path | None, Task]]:
    """Every encoder on every data set, opened and checked, with the folder of its scores."""
    protocols = protocols_named(command.protocols, command.settings)
    sets = [DataSet("", command.train, command.test)]
    sets = sets if command.transfer is None else read_data_sets(command.transfer)
    main = None if command.run is None else loaded(command.run, command)
    own = Path(command.out) if command.out is not None else folder_of(command.run) if command.run else None
    if own is not None:
        check_kept(own, "Name another folder with --out.")
    given = {name: getattr(command, name) for name in ("seed", "seeds", "device", "workers")}
    usual: list[str] = []
    if main is not None and command.transfer is None:  # there they would take twice as long again
        usual = [word for word in USUAL if word not in (command.run, *command.compare)]
    tasks: list[tuple[Path | None, Task]] = []
    for word in (command.run or "features", *command.compare, *([] if command.no_baselines else usual)):
        encoder, chosen, folder, anew = main, protocols, own, None
        if word in BASELINES and word != command.run:
            baseline, unrequested = BASELINES[word], word in usual
            # What nobody requested costs no training: linear-sgd takes hours on many images.
            chosen = tuple(
                one for one in protocols if baseline.takes(one) and not (unrequested and one.usual)
            )
            if not chosen and unrequested:
                continue
            if not chosen:
                kind = "trains the encoder, such as semi-1" if baseline.anew else "does not, such as knn"
                raise ConfigError(
                    f"The baseline {word} is scored by none of {', '.join(command.protocols)}. "
                    f"Add a protocol that {kind}."
                )
            try:
                encoder = baseline.make(main, seed=command.seed, net=command.encoder)
            except ConfigError as failure:
                if not unrequested:
                    raise
                logger.warning("The baseline %s is left out: %s", word, failure)
                continue
            anew = partial(baseline.make, main, net=command.encoder) if baseline.anew else None
        elif word in command.compare:
            encoder, folder = loaded(word, command), folder_of(word)
            try:
                if folder is not None:
                    check_kept(folder, "Its scores are shown and not kept.")
            except ConfigError as failure:
                logger.warning("%s", failure)
                folder = None
        cache = None if command.no_cache or folder is None else folder / "features"
        for place, one in enumerate(sets):
            if word in usual and any(
                isinstance(side, Features) for side in (tasks[place][1].train, tasks[place][1].test)
            ):
                continue  # a baseline has features of its own
            settings = replace(command.settings, metric=one.metric or command.settings.metric)
            keep = command.save_classifier if word == (command.run or "features") else None
            more = {"name": word, "data_set": one.name, "cache": cache, "anew": anew, "world": world, **given}
            more["save_classifier"] = keep
            train, test, scored = one.train, one.test, encoder
            if word in BASELINES and word != command.run:  # on the same images, opened and compared before
                first = tasks[place][1]
                train, test, more["overlap"] = first.train, first.test, first.known["overlap"]
            if encoder is not None and word == "untrained" != command.run and isinstance(train, Images):
                scored = settled(encoder, train)
            task = prepare(scored, train, test, chosen, settings, **more)
            for side in (task.train, task.test):
                if isinstance(side, Images) and world.size > 1:
                    check_same(side, world)
            tasks.append((folder, task))
    return tasks


def loaded(word: str, command: Evaluate) -> Encoder:
    """An encoder by its path or its name in a library, with the central crop that is to be scored.

    --encoder builds a network of the user's own.
    """
    if word.startswith(LIBRARIES):
        encoder = load_encoder(word, weights=command.weights, device=command.device)
    else:
        try:
            encoder = load_encoder(word, device=command.device)
        except OwnNetwork:
            if command.encoder is None:
                raise
            encoder = load_encoder(word, net=command.encoder, device=command.device)
    return encoder.with_crop(command.eval_crop)

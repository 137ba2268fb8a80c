"""How an encoder did: one `Score` for each protocol, as lines of scores.jsonl and as a table for people."""

import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from byol.disk import append_text, parse_json
from byol.errors import CheckpointError
from byol.evaluation.inputs import Answers
from byol.evaluation.metrics import bounds, interval, measure, place, resampled_means
from byol.features.embed import Features

SCORES = "scores.jsonl"  # beside an encoder
WIDTH = 100  # letters, of a line of settings
TITLES = {"top1": "top-1", "mean_per_class": "mean per class", "map11": "11-point mAP"}


@dataclass(frozen=True)
class Score:
    """How an encoder did in one protocol."""

    protocol: str
    metric: str  # what `value` is: top1, mean_per_class or map11
    value: float  # a fraction; the mean over the seeds
    low: float  # 95 % interval of value: bootstrap over the test images
    high: float
    spread: (
        float | None
    )  # standard deviation of value over the seeds; None for one seed, or where nothing is random
    top1: float | None  # share of test images classified right; None where images have several labels
    top5: float | None  # whose class is among the first five; None too with five classes or fewer
    settings: dict[str, Any]  # given and chosen; a list where the seeds chose differently
    train_images: int
    test_images: int
    classes: int
    seeds: tuple[int, ...]  # of what was random: the protocol, or the training it was part of
    seconds: (
        float  # of the protocol, all seeds; those of computing the features for knn and linear do not count
    )
    encoder: str = ""
    blake2b: str = (
        ""  # of the encoder's tensors and description, as in its file; empty for scores from within training
    )
    data_set: str = ""  # its name in a list of several
    train: str = ""
    test: str = ""
    same_images: bool = False  # in train and test, which makes the score meaningless


def score_of(protocol: str, metric: str, answers: Sequence[Answers], classes: int, **known: Any) -> Score:
    """The score of a protocol's answers, one for each seed; `known` are the other fields."""
    labels, scores = answers[0].labels, [one.scores for one in answers]
    assert labels is not None
    values = [measure(metric, one, labels) for one in scores]
    low, high = interval(metric, scores, labels)
    places = None if labels.ndim == 2 else np.stack([place(one, labels) for one in scores])
    return Score(
        protocol,
        metric,
        float(np.mean(values)),
        low,
        high,
        float(np.std(values, ddof=1)) if len(values) > 1 else None,
        None if places is None else float((places == 0).mean()),
        None if places is None or classes <= 5 else float((places < 5).mean()),
        joined([one.settings for one in answers]),
        answers[0].train_images,
        len(labels),
        classes,
        **known,
    )


def joined(settings: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The settings of several seeds: what differs becomes a list."""
    first = settings[0]
    return {
        name: value if all(one[name] == value for one in settings) else [one[name] for one in settings]
        for name, value in first.items()
    }


def scored(
    protocol: str,
    correct: np.ndarray[Any, np.dtype[np.bool_]],
    train: Features,
    settings: dict[str, Any],
    seed: int,
    seconds: float,
) -> Score:
    """A top-1 score from which test images were answered right."""
    assert train.y is not None
    classes = len(train.classes) if train.classes else int(train.y.max()) + 1
    value, zeros = float(correct.mean()), np.zeros(len(correct), dtype=np.int64)
    low, high = bounds(resampled_means(correct.astype(float), zeros, np.random.default_rng(0)))
    return Score(protocol, "top1", value, low, high, None, value, None, settings, len(train.x), len(correct), classes,
                 (seed,), seconds)  # fmt: skip


def write_scores(scores: Mapping[str, Score], path: str | Path) -> None:
    """Append one JSON line per score, all or none. Raises DiskError when the file cannot be written."""
    append_text(Path(path), "".join(json.dumps(asdict(score)) + "\n" for score in scores.values()))


def read_scores(path: Path) -> list[Score]:
    """The scores in a file that `write_scores` wrote, oldest first. Raises CheckpointError for a line that is none."""
    scores = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            values = parse_json(line)
            if values["metric"] not in TITLES:
                raise ValueError(f"no metric {values['metric']!r}")
            scores.append(Score(**{**values, "seeds": tuple(values["seeds"])}))
        except (ValueError, KeyError, TypeError) as failure:
            raise CheckpointError(
                f"Line {number} of {path} is no score of this version ({failure}). Remove it."
            ) from failure
    return scores


def score_table(scores: Mapping[str, Score]) -> str:
    """The scores of one encoder for people, in percent, and below them the settings of each."""
    notes: list[str] = []
    rows = [["protocol", "metric", "value", "95 % interval", "top-5", "spread"]]
    for name, score in scores.items():
        top5, spread = (
            "-" if value is None else f"{100 * value:.2f}" for value in (score.top5, score.spread)
        )
        value, interval = f"{100 * score.value:.2f} %", f"{100 * score.low:.2f} to {100 * score.high:.2f}"
        rows.append([name, TITLES[score.metric], value, interval, top5, spread])
        notes += textwrap.wrap(
            f"{name}: {in_words(score.settings)}", WIDTH, subsequent_indent="  ", break_on_hyphens=False
        )
    seeds = max((score.seeds for score in scores.values()), key=len, default=())
    if len(seeds) > 1:
        notes.append(f"spread: standard deviation over the seeds {', '.join(map(str, seeds))}")
    return "\n".join([*aligned(rows, left=(0, 1)), *notes, *counts(scores)])


def comparison(scores: Mapping[str, Mapping[str, Score]]) -> str:
    """Several encoders side by side for people: a row for each protocol, a column for each encoder.

    A cell is the value, its spread over several seeds, and the ends of its 95 % interval in percent.
    """
    rows = list(dict.fromkeys(name for column in scores.values() for name in column))
    table = [["protocol", "metric", *scores]]
    for row in rows:
        found = [column.get(row) for column in scores.values()]
        metric = next(TITLES[score.metric] for score in found if score is not None)
        table.append([row, metric, *map(cell, found)])
    images = counts({row: score for column in scores.values() for row, score in column.items()})
    spread = any(score.spread is not None for column in scores.values() for score in column.values())
    words = "percent, ± the standard deviation over the seeds," if spread else "percent,"
    legend = f"{words} and the 95 % interval over the test images; settings are in scores.jsonl"
    return "\n".join([*aligned(table, left=(0, 1)), legend, *images])


def cell(score: Score | None) -> str:
    """A score in a comparison."""
    if score is None:
        return "-"
    spread = "" if score.spread is None else f" ± {100 * score.spread:.2f}"
    return f"{100 * score.value:.2f}{spread}  {100 * score.low:.1f}-{100 * score.high:.1f}"


def aligned(rows: Sequence[Sequence[str]], left: Sequence[int]) -> list[str]:
    """Lines of a table; the columns `left` begin below one another, the others end so."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "   ".join(
            cell.ljust(width) if place in left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def counts(scores: Mapping[str, Score]) -> list[str]:
    """How many images and classes: a line, or several that say for which scores each holds."""
    found: dict[str, list[str]] = {}
    for name, score in scores.items():
        images = f"{score.test_images:,} test images of {score.classes} classes, learned from {score.train_images:,}"
        images += " (the very same, so these scores are meaningless)" if score.same_images else ""
        found.setdefault(images, []).append(name)
    return (
        list(found)
        if len(found) == 1
        else [f"{', '.join(names)}: {images}" for images, names in found.items()]
    )


def in_words(settings: Mapping[str, Any]) -> str:
    """The settings in a few words; those that are not used, and long ones, are left to scores.jsonl."""
    used = {name: value for name, value in settings.items() if value is not None}
    words = {name: rounded(value) for name, value in used.items()}
    return ", ".join(f"{name} {word}" for name, word in words.items() if len(word) <= 40)


def rounded(value: Any) -> str:
    """A setting for people; of several seeds a list."""
    if isinstance(value, list):
        return f"[{', '.join(map(rounded, value))}]"
    return f"{value:.3g}" if isinstance(value, float) else str(value)

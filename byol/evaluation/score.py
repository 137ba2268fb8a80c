"""How an encoder did: one `Score` for each protocol, and the lines of scores.jsonl."""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from byol.disk import append_text, at_once, parse_json
from byol.errors import CheckpointError
from byol.evaluation.inputs import Predictions
from byol.evaluation.metrics import METRICS, TOP, interval, measure
from byol.settings import Checked, Count, NotNegative, Share

SCORES = "scores.jsonl"  # beside an encoder
MOST_SCORES = 2**23  # bytes of it


@dataclass(frozen=True)
class Score(Checked):
    """How an encoder did in one protocol."""

    protocol: str
    metric: str  # what `value` is: top1, mean_per_class or map11
    value: Share  # a fraction; the mean over the seeds
    low: Share  # 95 % interval of value: bootstrap over the test images
    high: Share
    std: NotNegative | None  # of value over the seeds; None for one, or where nothing is random
    top1: Share | None  # share of test images classified right; None where they are multi-label
    top5: Share | None  # whose class is among the first five; None too with five classes or fewer
    settings: dict[str, Any]  # requested and chosen; a list where the seeds chose differently
    train_images: int
    test_images: Count
    classes: int
    seeds: tuple[int, ...]  # of what was random: the protocol, or the training it was part of
    seconds: NotNegative  # of the protocol, all seeds; without those of computing features
    encoder_name: str = ""
    encoder_checksum: str = ""  # as in its file, or unknown; empty for scores from within training
    data_set: str = ""  # its name in a list of several
    train: str = ""
    test: str = ""
    overlap: int = 0  # test images that are train images too
    # One for each seed, beside the fields: neither files nor `asdict` have them.
    predictions: ClassVar[tuple[Predictions, ...]] = ()

    def __repr__(self) -> str:
        value, low, high = (f"{100 * number:.2f}" for number in (self.value, self.low, self.high))
        return f"Score({self.protocol}: {self.metric} {value} %, {low} to {high})"


def score_of(protocol: str, runs: Sequence[Predictions], *, metric: str, classes: int, **known: Any) -> Score:
    """The score of a protocol's predictions, one for each seed; `known` are the other fields."""
    labels, found = runs[0].labels, [one.classes for one in runs]
    assert labels is not None
    values = [measure(metric, one, labels) for one in found]
    low, high = interval(metric, found, labels)
    top1 = top5 = None
    if labels.ndim == 1:
        right = [one == labels[:, None] for one in found]
        top1 = float(np.mean([one[:, 0].mean() for one in right]))
        if classes > TOP and right[0].shape[1] == TOP:
            top5 = float(np.mean([one.any(axis=1).mean() for one in right]))
    settings = {}
    for name in runs[0].settings:
        every = [one.settings[name] for one in runs]
        settings[name] = every[0] if all(value == every[0] for value in every) else every
    score = Score(
        protocol=protocol, metric=metric, value=float(np.mean(values)), low=low, high=high,
        std=float(np.std(values, ddof=1)) if len(values) > 1 else None, top1=top1, top5=top5,
        settings=settings, train_images=runs[0].train_images,
        test_images=len(labels), classes=classes, **known,
    )  # fmt: skip
    object.__setattr__(score, "predictions", tuple(runs))
    return score


def write_scores(scores: Mapping[str, Score], path: str | Path) -> None:
    """Append one JSON line per score, all or none. Raises DiskError when the file cannot be written."""
    append_text(Path(path), "".join(json.dumps(asdict(score)) + "\n" for score in scores.values()))


def read_scores(path: Path) -> list[Score]:
    """The scores in a file, oldest first. Raises CheckpointError for a line that is not one, or too many."""
    scores = []
    with open(path, "rb", opener=at_once) as file:
        content = file.read(MOST_SCORES + 1)
        if len(content) > MOST_SCORES:
            raise CheckpointError(
                f"{path} has more than {MOST_SCORES:,} bytes, which are more than ten thousand scores. "
                "Move it away, or take lines out."
            )
        for number, line in enumerate(io.BytesIO(content), start=1):
            try:
                scores.append(score_in(line))
            except (ValueError, KeyError, TypeError, AttributeError) as failure:
                raise CheckpointError(
                    f"Line {number} of {path} is not a score that this version reads ({failure}). Remove it."
                ) from failure
    return scores


def score_in(line: bytes) -> Score:
    """The score that a line holds."""
    values = parse_json(line)
    if values["metric"] not in METRICS:
        raise ValueError(f"there is no metric {values['metric']!r}")
    return Score(**{**values, "seeds": tuple(values["seeds"])})

"""Was it worth it? What the scores of an encoder and its baselines say in words."""

import textwrap
from collections.abc import Mapping
from typing import Any

import numpy as np

from byol.evaluation.inputs import Predictions, labels_of
from byol.evaluation.metrics import interval
from byol.evaluation.protocols import Task
from byol.evaluation.score import Score, score_of
from byol.models.build import LIBRARIES

MAJORITY = "majority"
BASELINES = {
    "pixels": "raw pixels",
    "untrained": "the untrained network",
    MAJORITY: "the most frequent class alone",
}
OUTCOMES = ("clearly better than", "not distinguishable from", "worse than")
ADVICE = (
    "more steps (--epochs, --budget), gentler views (see `byol views`), more images to train on, or stock "
    "weights (torchvision:NAME, timm:NAME); more test images tell smaller differences"
)
PAGE = 110  # letters of a line


def majority(task: Task, score: Score) -> Score | None:
    """The score of always saying the most frequent class of the train split; None for multi-label images."""
    y, labels = labels_of(task.train), score.predictions[0].labels
    if y.ndim != 1 or labels is None:
        return None
    classes, counts = np.unique(y, return_counts=True)
    said = np.full((len(labels), 1), classes[counts.argmax()])
    known: dict[str, Any] = {name: getattr(score, name) for name in ("train", "test", "data_set", "overlap")}
    known |= {"metric": score.metric, "classes": score.classes, "encoder_name": MAJORITY}
    return score_of(score.protocol, [Predictions(said, labels, {}, len(y))], seeds=(), seconds=0.0, **known)


def difference(score: Score, other: Score) -> tuple[float, float, float] | None:
    """By how much a score is better than another, and the 95 % interval; None for other test images."""
    ours, theirs = score.predictions, other.predictions
    labels = ours[0].labels if ours and theirs else None
    if labels is None or not np.array_equal(labels, theirs[0].labels):  # type: ignore[arg-type]
        return None
    found = [[one.classes for one in runs] for runs in (ours, theirs)]
    return score.value - other.value, *interval(score.metric, found[0], labels, against=found[1])


def verdict(scores: Mapping[str, Mapping[str, Score]]) -> list[str]:
    """What the first encoder is worth beside the others, a sentence for each protocol, and what to try."""
    (_, ours), *others = scores.items()
    lines, stock, weak = list[str](), dict[str, None](), False
    for protocol, score in ours.items():
        found: dict[str, list[str]] = {outcome: [] for outcome in OUTCOMES}
        for name, column in others:
            if protocol not in column or (measured := difference(score, column[protocol])) is None:
                continue
            by, low, high = (100 * number for number in measured)
            outcome = OUTCOMES[0 if low > 0 else 2 if high < 0 else 1]
            found[outcome].append(f"{BASELINES.get(name, name)} ({by:+.1f}, {low:+.1f} to {high:+.1f})")
            weak |= name in BASELINES and outcome != OUTCOMES[0]
            if outcome == OUTCOMES[2] and name.startswith(LIBRARIES):
                stock[name] = None
        parts = [f"{outcome} {', '.join(names)}" for outcome, names in found.items() if names]
        lines += wrapped("verdict", f"{protocol}: {'; '.join(parts)}") if parts else []
    if stock:
        lines += wrapped("to try", f"the stock weights of {' or '.join(stock)}: they are better here")
    return [*lines, *wrapped("to try", ADVICE)] if weak and not stock else lines


def wrapped(title: str, words: str) -> list[str]:
    """A title and words as lines of a page."""
    return textwrap.wrap(words, PAGE, initial_indent=f"{title:<10}", subsequent_indent=" " * 10)

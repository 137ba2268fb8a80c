"""Numbers that scores of test images come down to, and how far they would move with other test images.

`scores` are float (N, classes), larger for a likelier class. `labels` are int64 (N,), or (N, classes) of 0 and 1 where
images have several.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from byol.errors import ConfigError, did_you_mean

Array = np.ndarray[Any, Any]
METRICS = (
    "top1",
    "mean_per_class",
    "map11",
)  # paper Table 10: top-1, mean per class, 11-point mAP of VOC 2007
RESAMPLES = 1000


def metric_for(labels: Array, name: str | None) -> str:
    """A metric by name, or the usual one for such labels. Raises ConfigError for one that they do not allow."""
    several = labels.ndim == 2
    if name is None:
        return "map11" if several else "top1"
    if name not in METRICS:
        raise ConfigError(
            f"There is no metric {name!r}.{did_you_mean(name, METRICS)} There are: {', '.join(METRICS)}."
        )
    if several != (name == "map11"):
        kind, right = ("several labels", "map11") if several else ("one label", "top1 or mean_per_class")
        raise ConfigError(f"The metric is {name}, but these images have {kind} each; expected {right}.")
    return name


def measure(metric: str, scores: Array, labels: Array) -> float:
    """A metric as a fraction."""
    if metric == "map11":
        return mean_average_precision(scores, labels)
    right = place(scores, labels) == 0
    return mean_per_class(right, labels) if metric == "mean_per_class" else float(right.mean())


def place(scores: Array, labels: Array) -> Array:
    """How many classes come before each image's own, int64 (N,): 0 is a right answer, less than 5 is within the top five.

    Of equal scores the lower class comes first, as argmax has it. A class without a column, or with a score of minus
    infinity, is no answer at all and comes last.
    """
    known = labels < scores.shape[1]
    columns = np.where(known, labels, 0)[:, None]
    own = np.take_along_axis(scores, columns, axis=1)
    before = (scores > own) | ((scores == own) & (np.arange(scores.shape[1]) < columns))
    places: Array = np.where(known & (own[:, 0] > -np.inf), before.sum(axis=1), scores.shape[1])
    return places


def mean_per_class(right: Array, labels: Array) -> float:
    """The mean over the classes that occur of the share of their images that is right."""
    counts = np.bincount(labels)
    return float((np.bincount(labels, weights=right) / np.maximum(counts, 1))[counts > 0].mean())


def mean_average_precision(scores: Array, labels: Array) -> float:
    """The 11-point average precision of VOC 2007, averaged over the classes with an image; 0 when there is none."""
    columns = [
        _Ranking(scores[:, c], labels[:, c]).precision() for c in range(labels.shape[1]) if labels[:, c].any()
    ]
    return float(np.mean(columns)) if columns else 0.0


class _Ranking:
    """One class's images by falling score, so that its average precision in many resamples costs one sort."""

    def __init__(self, scores: Array, truth: Array) -> None:
        self.order = np.argsort(-scores, kind="stable")
        ranked = scores[self.order]
        self.ends = np.flatnonzero(
            np.append(ranked[1:] != ranked[:-1], True)
        )  # equal scores are taken all at once
        self.truth = truth[self.order].astype(np.int64)

    def precision(self, weights: Array | None = None) -> float:
        """Mean over the recalls 0, 0.1 ... 1 of the best precision at that recall or more; weights say how often each image is.

        NaN when no image of the class is left.
        """
        counts = np.ones(len(self.order), dtype=np.int64) if weights is None else weights[self.order]
        right, taken = (np.cumsum(values)[self.ends] for values in (counts * self.truth, counts))
        if right[-1] == 0:
            return float("nan")
        best = np.maximum.accumulate((right / np.maximum(taken, 1))[::-1])[::-1]
        # In whole numbers: a recall of 3 in 10 is 0.3, which floating point may put on either side of 0.3.
        return float(best[np.searchsorted(10 * right, np.arange(11) * right[-1])].mean())


def interval(metric: str, answers: Sequence[Array], labels: Array, seed: int = 0) -> tuple[float, float]:
    """A 95 % bootstrap interval over the test images: percentiles of 1,000 resamples of them, the same for all answers.

    `answers` are scores (N, classes), one for each seed of a protocol; the metric is their mean.
    """
    generator = np.random.default_rng(seed)
    if metric == "map11":
        # An image drawn twice raises a precision, so the resamples lie higher than the metric: by as much they are put back.
        drawn = _resampled_precisions(answers, labels, generator)
        value = np.mean([mean_average_precision(scores, labels) for scores in answers])
        drawn = (drawn + (value - drawn.mean())).clip(0, 1)
    else:
        right = np.mean([place(scores, labels) == 0 for scores in answers], axis=0)
        drawn = resampled_means(
            right, labels if metric == "mean_per_class" else np.zeros_like(labels), generator
        )
    return bounds(drawn)


def bounds(drawn: Array) -> tuple[float, float]:
    """The 95 % interval of a metric from its values in resamples."""
    low, high = np.percentile(drawn, (2.5, 97.5))
    return float(low), float(high)


def resampled_means(right: Array, groups: Array, generator: np.random.Generator) -> Array:
    """The mean over groups of the mean of `right` (N,), in each resample.

    Images of one group with the same value are alike, so a resample is one multinomial draw of how many of each kind.
    """
    kinds, counts = np.unique(np.stack([groups, right]), axis=1, return_counts=True)
    drawn = generator.multinomial(len(right), counts / len(right), RESAMPLES)
    starts = np.flatnonzero(np.append(True, np.diff(kinds[0]) > 0))
    totals, sums = (np.add.reduceat(values, starts, axis=1) for values in (drawn, drawn * kinds[1]))
    means: Array = np.nanmean(np.where(totals > 0, sums / np.maximum(totals, 1), np.nan), axis=1)
    return means


def _resampled_precisions(answers: Sequence[Array], labels: Array, generator: np.random.Generator) -> Array:
    """The mean average precision in each resample."""
    classes = np.flatnonzero(labels.any(axis=0))
    if len(classes) == 0:
        return np.zeros(RESAMPLES)
    rankings = [_Ranking(scores[:, c], labels[:, c]) for scores in answers for c in classes]
    drawn = np.zeros(RESAMPLES)
    for number in range(RESAMPLES):
        weights = np.bincount(generator.integers(len(labels), size=len(labels)), minlength=len(labels))
        precisions = np.array([ranking.precision(weights) for ranking in rankings])
        drawn[number] = precisions[~np.isnan(precisions)].mean() if (~np.isnan(precisions)).any() else 0.0
    return drawn

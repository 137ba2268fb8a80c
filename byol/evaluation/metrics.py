"""Metrics of predictions, and how far each would move with other test images.

Predictions are int64 (N, m): the likeliest classes of every image, the likeliest first, -1 where there is
none. Of multi-label images they are float (N, classes), a score for each class. Labels are int64 (N,), or
(N, classes) of 0 and 1.
"""

from collections.abc import Callable, Sequence
from math import sqrt
from typing import Any

import numpy as np
import torch
from torch import Tensor

from byol.errors import ConfigError, TrainingError, did_you_mean
from byol.features.formats import Array

METRICS = ("top1", "mean_per_class", "map11")  # paper Table 10; map11 is VOC 2007's 11-point mAP
TOP = 5  # classes that are kept of each image
BLOCK = 2**24  # scores held at once
RESAMPLES = 1000
FEWEST = 6  # images that must differ: 2 * 0.5**6 is below 5 %, 2 * 0.5**5 is not


def metric_for(labels: Array, name: str | None) -> str:
    """A metric by name, or the usual one. Raises ConfigError for one that such labels do not allow."""
    multi_label = labels.ndim == 2
    if name is not None and name not in METRICS:
        meant = did_you_mean(name, METRICS)
        raise ConfigError(f"There is no metric {name!r}.{meant} There are: {', '.join(METRICS)}.")
    if name is not None and multi_label != (name == "map11"):
        one = "of one label each; expected top1, mean_per_class"
        kind = "multi-label; expected map11" if multi_label else one
        raise ConfigError(f"The metric is {name}, but these images are {kind}.")
    return name or ("map11" if multi_label else "top1")


def predict(
    x: Tensor, scores_of: Callable[[Tensor], Tensor], classes: Tensor | None, *, width: int, count: int = TOP
) -> Tensor:
    """Predictions for rows of x (N, ...), from scores (n, C) of a block at a time, `width` numbers a row.

    `classes` int64 (C,) tells which classes the columns are, and the `count` likeliest are kept: scores of
    20,000 classes are never held for all images. None keeps all scores, as multi-label images need them.
    """
    found = []
    for part in x.split(max(1, BLOCK // width)):
        scores = scores_of(part)
        if scores.isnan().any():
            raise TrainingError("The classifier predicts NaN: training diverged. Try a lower learning rate.")
        found.append(scores if classes is None else likeliest(scores, classes, count))
    return torch.cat(found)


def likeliest(scores: Tensor, classes: Tensor, count: int = TOP) -> Tensor:
    """The classes of the highest scores (N, C), of equals the first: int64 (N, count); -1 for -infinity."""
    rest, found = scores.clone(), []
    for _ in range(min(count, len(classes))):
        best, columns = rest.max(dim=1)
        found.append(torch.where(best > -torch.inf, classes[columns], -1))
        rest.scatter_(1, columns[:, None], -torch.inf)
    return torch.stack(found, dim=1)


def measure(metric: str, predictions: Array, labels: Array) -> float:
    """A metric as a fraction."""
    values, counts = by_counts(metric, [predictions], labels)
    return float(values(counts[None])[0])


def interval(
    metric: str,
    predictions: Sequence[Array],
    labels: Array,
    seed: int = 0,
    against: Sequence[Array] | None = None,
) -> tuple[float, float]:
    """A 95 % bootstrap interval over the test images, of the mean over the predictions of several seeds.

    With predictions `against` them for the same images it is that of the difference: the same images are
    drawn for both, so what is hard for both does not blur it (a paired bootstrap, Koehn 2004). Where they
    differ on fewer than six images it reaches to 0: no exact test of McNemar's (1947) tells those apart.

    Duplicates in a resample raise an average precision: the interval of map11 is moved down by the mean rise.
    Where all resamples score the same, as when every image is right, it is Wilson's (1927) interval.
    """
    values, counts = by_counts(metric, predictions, labels, against)
    generator, share = np.random.default_rng(seed), counts / len(labels)
    size = min(RESAMPLES, max(1, BLOCK // (16 * len(counts))))  # that fit in memory at once
    draws = (generator.multinomial(len(labels), share, size) for _ in range(0, RESAMPLES, size))
    drawn = np.concatenate([values(draw) for draw in draws])
    if metric == "map11":
        drawn = (drawn + (values(counts[None]) - drawn.mean())).clip(-1 if against else 0, 1)
    low, high = np.percentile(drawn, (2.5, 97.5))
    if low == high and against:
        width = wilson(0.0, len(labels))[1]
        low, high = max(-1.0, low - width), min(1.0, high + width)
    if against and metric != "map11":
        sides = (
            np.mean([found[:, 0] == labels for found in side], axis=0) for side in (predictions, against)
        )
        if np.count_nonzero(np.subtract(*sides)) < FEWEST:
            low, high = min(low, 0.0), max(high, 0.0)
    if low == high:
        return wilson(float(low), len(labels))
    return float(low), float(high)


def wilson(share: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a share that was found in `count` images."""
    z = 1.959964
    middle, width = share + z**2 / (2 * count), z * sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    scale = 1 + z**2 / count
    return max(0.0, (middle - width) / scale), min(1.0, (middle + width) / scale)


def by_counts(
    metric: str, predictions: Sequence[Array], labels: Array, against: Sequence[Array] | None = None
) -> tuple[Callable[[Array], Any], Array]:
    """Put test images that count alike into K kinds: those of one class that are equally often right.

    Returns a function from counts (R, K) of the kinds to the metric (R,), the mean over the predictions, and
    the counts (K,) of the test set. With predictions `against` them it is the difference of both metrics.
    """
    if metric == "map11" and against:
        ours, counts = by_counts(metric, predictions, labels)
        theirs, _ = by_counts(metric, against, labels)
        return lambda drawn: ours(drawn) - theirs(drawn), counts
    if metric == "map11":
        occurring = np.flatnonzero(labels.any(axis=0))
        precisions = [average_precision(one[:, c], labels[:, c]) for one in predictions for c in occurring]

        def mean_precision(counts: Array) -> Any:
            found = np.array([[precision(row) for precision in precisions] for row in counts])
            return found.clip(0).sum(axis=1) / (found >= 0).sum(axis=1).clip(1)

        return mean_precision, np.ones(len(labels), dtype=np.int64)
    right = np.mean([found[:, 0] == labels for found in predictions], axis=0)
    if against:
        right -= np.mean([found[:, 0] == labels for found in against], axis=0)
    groups = labels if metric == "mean_per_class" else np.zeros_like(labels)
    kinds, counts = np.unique(np.stack([groups, right]), axis=1, return_counts=True)
    starts = np.flatnonzero(np.append(True, np.diff(kinds[0]) > 0))

    def mean_right(counts: Array) -> Any:
        totals, sums = (np.add.reduceat(numbers, starts, axis=1) for numbers in (counts, counts * kinds[1]))
        return np.nanmean(np.where(totals > 0, sums / np.maximum(totals, 1), np.nan), axis=1)

    return mean_right, counts


def average_precision(scores: Array, truth: Array) -> Callable[[Array], float]:
    """VOC 2007's 11-point average precision for counts (N,) of images; -1 when none of the class is left.

    It is the mean over the recalls 0, 0.1 ... 1 of the best precision at that recall or more. Equal scores
    are taken all at once. The images are sorted once for any number of resamples.
    """
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    truth = truth[order].astype(np.int64)

    def precision(counts: Array) -> float:
        counts = counts[order]
        right, taken = (np.cumsum(values)[ends] for values in (counts * truth, counts))
        if right[-1] == 0:
            return -1.0
        best = np.maximum.accumulate((right / np.maximum(taken, 1))[::-1])[::-1]
        # In whole numbers: a recall of 3 in 10 is 0.3, which floating point may put on either side of 0.3.
        return float(best[np.searchsorted(10 * right, np.arange(11) * right[-1])].mean())

    return precision

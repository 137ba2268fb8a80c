"""Numbers that a set of right and wrong answers comes down to."""

from typing import Any

import numpy as np

RESAMPLES = 1000


def top1(correct: np.ndarray[Any, np.dtype[np.bool_]]) -> float:
    """The share of right answers."""
    return float(correct.mean())


def interval(correct: np.ndarray[Any, np.dtype[np.bool_]], seed: int = 0) -> tuple[float, float]:
    """A 95 % bootstrap interval of `top1` over the test images: percentiles of 1,000 resamples.

    Drawing n answers with replacement from n answers of which a share p is right is one binomial draw.
    """
    count = len(correct)
    drawn = np.random.default_rng(seed).binomial(count, correct.mean(), RESAMPLES) / count
    low, high = np.percentile(drawn, (2.5, 97.5))
    return float(low), float(high)

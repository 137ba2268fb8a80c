"""Weighted k nearest neighbours (Wu et al. 2018): the cheapest honest answer to "are these features good?"."""

import math
from collections.abc import Sequence
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor

from byol.errors import ConfigError, DataError
from byol.features.embed import Features
from byol.features.neighbours import nearest

BLOCK = 2**26  # votes held at once, in bytes


def knn_predict(
    bank: Tensor, labels: Tensor, queries: Tensor, *, k: int = 20, temperature: float = 0.07
) -> Tensor:
    """The class of each query (Q, D): its k most similar rows of the bank (N, D) vote with weight exp(cosine / temperature).

    Labels are int64 (N,) from 0. Fewer than k rows: all of them vote. Works in blocks on the bank's device; returns int64 (Q,).
    """
    return knn_votes(bank, labels, queries, (k,), temperature)[0].argmax(dim=1)


def knn_votes(
    bank: Tensor, labels: Tensor, queries: Tensor, ks: Sequence[int], temperature: float
) -> list[Tensor]:
    """For each k the votes of the k nearest rows for every class, float32 (Q, classes) on the bank's device.

    The votes of a query are relative to its nearest row's. Labels are int64 (N,) from 0, or (N, classes) of 0 and 1.
    """
    check_votes(ks, temperature)
    if len(bank) == 0 or len(bank) != len(labels) or labels.min() < 0:
        raise DataError(
            f"kNN got {len(bank)} rows and {len(labels)} labels to vote; expected the same number, at least 1, labels from 0."
        )
    if bank.ndim != 2 or bank.shape[1:] != queries.shape[1:]:
        raise DataError(
            f"kNN got rows {tuple(bank.shape)} and queries {tuple(queries.shape)}; expected (N, D) and (Q, D)."
        )
    cosines, rows = nearest(bank, queries.to(bank.device), max(ks))
    # Relative to the nearest: the votes' ratios stay, and at a small temperature they neither overflow nor all vanish.
    weights = ((cosines - cosines[:, :1]) / temperature).exp()
    return [_votes(labels.to(bank.device), rows[:, :k], weights[:, :k]) for k in ks]


def _votes(labels: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
    """The sum of the weights (Q, k) by the classes of the rows (Q, k): (Q, classes)."""
    if labels.ndim == 1:
        votes = torch.zeros(len(rows), int(labels.max()) + 1, device=weights.device)
        return votes.scatter_add_(1, labels[rows], weights)
    size = max(1, BLOCK // (4 * max(1, rows.shape[1]) * labels.shape[1]))
    parts = zip(rows.split(size), weights.split(size), strict=True)
    return torch.cat([torch.einsum("qk,qkc->qc", weight, labels[row].float()) for row, weight in parts])


def check_votes(ks: Sequence[int], temperature: float) -> None:
    """Raise ConfigError for settings no vote can be taken with."""
    if not ks or not all(isinstance(k, Integral) and k >= 1 for k in ks) or not 0 < temperature < math.inf:
        raise ConfigError(
            f"kNN got k={', '.join(map(str, ks)) or 'nothing'} and temperature={temperature}; expected a whole k of at "
            "least 1 and a positive temperature."
        )


def knn_correct(
    bank: Features, queries: Features, *, k: int = 20, temperature: float = 0.07
) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which queries get their own label from the bank's votes: bool (Q,). Labels of both must mean the same classes."""
    if bank.y is None or queries.y is None:
        raise DataError(
            "kNN needs labels on both sides: of the images that vote and of the images that are scored."
        )
    predicted = knn_predict(
        torch.from_numpy(bank.x),
        torch.from_numpy(bank.y),
        torch.from_numpy(queries.x),
        k=k,
        temperature=temperature,
    )
    return np.asarray(predicted.numpy() == queries.y)

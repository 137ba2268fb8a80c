"""Weighted k nearest neighbours (Wu et al. 2018): the cheapest honest test of features."""

import math
from collections.abc import Sequence
from functools import partial
from numbers import Integral

import torch
from torch import Tensor

from byol.errors import ConfigError, DataError
from byol.evaluation.metrics import TOP, predict
from byol.features.neighbours import nearest


def knn_predict(
    bank: Tensor, labels: Tensor, queries: Tensor, *, k: int = 20, temperature: float = 0.07
) -> Tensor:
    """The class of each query (Q, D): k nearest rows of the bank (N, D) vote by exp(cosine / temperature).

    Labels are int64 (N,) from 0. Of fewer than k rows all vote. Works on the bank's device; int64 (Q,).
    """
    if labels.ndim != 1:
        raise DataError(f"The labels have the shape {tuple(labels.shape)}; expected one class for each row.")
    return knn_predictions(bank, labels, queries, (k,), temperature, count=1)[0][:, 0]


def knn_predictions(
    bank: Tensor,
    labels: Tensor,
    queries: Tensor,
    ks: Sequence[int],
    temperature: float,
    *,
    count: int | None = TOP,
) -> list[Tensor]:
    """For each k what the votes of the k nearest rows predict, on the bank's device: see `predict`.

    Labels are int64 (N,) from 0, or (N, classes) of 0 and 1. Only classes with a vote are predicted. With
    no `count` it is the votes themselves, for each class that occurs; -infinity where there is none.
    """
    check_votes(ks, temperature)
    fit = bank.ndim == 2 and bank.shape[1:] == queries.shape[1:] and len(bank) == len(labels) > 0
    if not fit or labels.min() < 0:
        shapes = ", ".join(f"{name} {tuple(x.shape)}" for name, x in (("rows", bank), ("labels", labels)))
        raise DataError(
            f"kNN got {shapes}, queries {tuple(queries.shape)}; expected (N, D), (N,) from 0, and (Q, D)."
        )
    cosines, rows = nearest(bank, queries.to(bank.device), max(ks))
    # Relative to the nearest, so that at a small temperature none overflows, nor do all vanish.
    weights = ((cosines - cosines[:, :1]) / temperature).exp()
    labels, multi_label = labels.to(bank.device), labels.ndim == 2
    # The classes that occur are the columns: a label of a million is one of them as any other.
    classes, columns = (None, labels) if multi_label else labels.unique(return_inverse=True)

    def votes(part: Tensor, k: int) -> Tensor:
        near, weight = columns[rows[part, :k]], weights[part, :k]
        if classes is None:
            return torch.einsum("qk,qkc->qc", weight, near.float())
        found = weight.new_zeros(len(part), len(classes)).scatter_add_(1, near, weight)
        return found.masked_fill_(found == 0, -torch.inf)

    every = torch.arange(len(queries), device=bank.device)
    widths = {k: len(classes) if classes is not None else k * labels.shape[1] for k in ks}
    kept = None if count is None else classes
    return [predict(every, partial(votes, k=k), kept, width=widths[k], count=count or TOP) for k in ks]


def check_votes(ks: Sequence[int], temperature: float) -> None:
    """Raise ConfigError for settings no vote can be taken with."""
    if not ks or not all(isinstance(k, Integral) and k >= 1 for k in ks) or not 0 < temperature < math.inf:
        raise ConfigError(
            f"kNN got k={', '.join(map(str, ks)) or 'nothing'} and temperature={temperature}; expected a "
            "whole k of at least 1 and a positive temperature."
        )

"""Weighted k nearest neighbours (Wu et al. 2018): the cheapest honest answer to "are these features good?"."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from byol.errors import ConfigError, DataError
from byol.features.extract import Features
from byol.features.files import BLOCK
from byol.features.neighbours import nearest


def knn_predict(bank: Tensor, labels: Tensor, queries: Tensor, *, k: int = 20, temperature: float = 0.07) -> Tensor:
    """The class of each query (Q, D): its k most similar rows of the bank (N, D) vote with weight exp(cosine / temperature).

    Labels are int64 (N,) from 0. Fewer than k rows: all of them vote. Works in blocks on the bank's device; returns int64 (Q,).
    """
    check_votes(k, temperature)
    if len(bank) == 0 or len(bank) != len(labels) or labels.min() < 0:
        raise DataError(
            f"kNN got {len(bank)} rows and {len(labels)} labels to vote; expected the same number, at least 1, labels from 0."
        )
    if bank.ndim != 2 or bank.shape[1:] != queries.shape[1:]:
        raise DataError(f"kNN got rows {tuple(bank.shape)} and queries {tuple(queries.shape)}; expected (N, D) and (Q, D).")
    classes = int(labels.max()) + 1
    cosines, rows = nearest(bank, queries.to(bank.device), k)
    # Relative to the nearest: the votes' ratios stay, and at a small temperature they neither overflow nor all vanish.
    weights = ((cosines - cosines[:, :1]) / temperature).exp()
    predicted = []
    size = max(1, BLOCK // (4 * classes))
    for answers, weight in zip(labels.to(rows.device)[rows].split(size), weights.split(size), strict=True):
        votes = torch.zeros(len(answers), classes, device=rows.device)
        predicted.append(votes.scatter_add_(1, answers, weight).argmax(dim=1))
    return torch.cat(predicted)


def check_votes(k: int, temperature: float) -> None:
    """Raise ConfigError for settings no vote can be taken with."""
    if k < 1 or not 0 < temperature < math.inf:
        raise ConfigError(f"kNN got k={k} and temperature={temperature}; expected k of at least 1 and a positive temperature.")


def knn_correct(
    bank: Features, queries: Features, *, k: int = 20, temperature: float = 0.07
) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which queries get their own label from the bank's votes: bool (Q,). Labels of both must mean the same classes."""
    if bank.y is None or queries.y is None:
        raise DataError("kNN needs labels on both sides: of the images that vote and of the images that are scored.")
    predicted = knn_predict(
        torch.from_numpy(bank.x), torch.from_numpy(bank.y), torch.from_numpy(queries.x), k=k, temperature=temperature
    )
    return np.asarray(predicted.numpy() == queries.y)

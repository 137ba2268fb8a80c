"""Which images stand for the others: a diverse pick to label first, and clusters."""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from byol.errors import ConfigError, DataError, library
from byol.features.features import Features, Rows, Values, blocks, matrix, unit_blocks
from byol.features.formats import Array
from byol.features.neighbours import check_at_least_one, row_numbers

SAMPLE, PER_CLUSTER = 100_000, 256  # rows that cluster centres are fitted to: the larger of both


@dataclass(frozen=True)
class Clusters:
    """A cluster for every row, the largest cluster first."""

    labels: Rows  # (N,) from 0 to K - 1
    distances: Values  # (N,) Euclidean, from the row, scaled to length 1, to its centre
    centres: Values  # (K, D)


def pick(features: Features | Array, count: int, *, labelled: Any = None, uncertainty: Any = None) -> Rows:
    """The `count` rows most worth labelling: each next one is the farthest from those already chosen (n,).

    Greedy k-centre (Gonzalez 1985; as a choice of images to label Sener and Savarese 2018) on rows scaled
    to length 1: no row is farther from the chosen ones than twice the least radius that as many centres can
    have. `labelled`, numbers of rows, count as chosen already and are not picked; without them the most
    central row, or the most uncertain one, is first. `uncertainty` multiplies the distances: numbers from 0
    (N,), or class probabilities (N, C), of which 1 minus the margin between the two likeliest is taken.
    Raises ConfigError or DataError for arguments that do not fit the features.
    """
    x = matrix(features)
    check_at_least_one("The number of images to pick", count)
    weight = np.ones(len(x), dtype=np.float32) if uncertainty is None else _weight_of(uncertainty, len(x))
    # In float64, for the squares of 1e25 overflow.
    lengths = np.concatenate([np.linalg.norm(block.astype(np.float64), axis=1) for _, block in blocks(x)])
    lengths = lengths.clip(np.finfo(np.float32).tiny).astype(np.float32)
    distance = np.full(len(x), np.inf, dtype=np.float32)  # to the nearest chosen row; -1 when chosen itself

    def cosines(vector: Values) -> Values:
        return np.asarray(np.concatenate([block @ vector for _, block in blocks(x)]) / lengths)

    def choose(row: int) -> None:
        to_row = np.sqrt((2 - 2 * cosines(x[row] / lengths[row])).clip(0))
        np.minimum(distance, to_row, out=distance)
        distance[row] = -1

    for row in [] if labelled is None or len(labelled) == 0 else row_numbers(labelled, len(x)).tolist():
        choose(row)
    chosen: list[int] = []
    for _ in range(min(count, int((distance >= 0).sum()))):
        if np.isfinite(distance).any():
            row = np.where(distance < 0, -1, distance * weight).argmax()  # -1: behind a weight of 0
        elif uncertainty is not None:
            row = weight.argmax()
        else:  # the highest cosine to the mean of all
            row = cosines(sum(part.T @ (1 / lengths[n : n + len(part)]) for n, part in blocks(x))).argmax()
        chosen.append(int(row))
        choose(chosen[-1])
    return np.array(chosen, dtype=np.int64)


def _weight_of(uncertainty: Any, count: int) -> Values:
    """Uncertainty as float32 (N,), from itself or from class probabilities (N, C). Raises DataError."""
    given = np.asarray(uncertainty)
    probabilities = given.shape[:1] == (count,) and given.ndim == 2 and given.shape[1] > 1
    if given.dtype.kind not in "biuf" or not (probabilities or given.shape == (count,)):
        raise DataError(
            f"The uncertainty has shape {given.shape}; expected a number from 0 for each of the {count:,} "
            "feature rows, or class probabilities (N, C)."
        )
    values: Values = given.astype(np.float32)
    if not np.isfinite(values).all() or values.min() < 0:
        raise DataError("The uncertainty holds NaN, infinity or negative numbers; expected numbers from 0.")
    if not probabilities:
        return values
    if (np.abs(values.sum(axis=1) - 1) >= 1e-2).any():
        raise DataError("The uncertainty has rows that do not sum to 1; expected class probabilities.")
    second, first = np.sort(values, axis=1)[:, -2:].T
    return np.asarray(1 - (first - second))


def clusters(features: Features | Array, count: int, *, seed: int = 0) -> Clusters:
    """k-means on rows scaled to length 1, by scikit-learn: k-means++, the best of four starts.

    The centres are fitted to at most SAMPLE random rows, or PER_CLUSTER for each cluster if that is more;
    then every row goes to its nearest centre. Raises ConfigError for more clusters than rows or without
    scikit-learn.
    """
    library("sklearn", "search", "clusters")
    from sklearn.cluster import KMeans

    x, cpu = matrix(features), torch.device("cpu")
    if not 1 <= count <= len(x):
        raise ConfigError(
            f"{count} clusters of {len(x):,} rows; expected from 1 to as many as there are rows."
        )
    sample, size = x, max(SAMPLE, PER_CLUSTER * count)
    if size < len(x):
        sample = x[np.sort(np.random.default_rng(seed).choice(len(x), size, replace=False))]
    with warnings.catch_warnings(action="ignore"):  # fewer different rows than clusters: some stay empty
        model = KMeans(count, n_init=4, random_state=seed)
        model.fit(np.concatenate([rows.numpy() for _, rows in unit_blocks(sample, cpu)]))
    labels, distances = [], []
    for _, rows in unit_blocks(x, cpu):
        labels.append(model.predict(rows.numpy()))
        distances.append(np.linalg.norm(rows.numpy() - model.cluster_centers_[labels[-1]], axis=1))
    found = np.concatenate(labels)
    order = np.argsort(-np.bincount(found, minlength=count), kind="stable")
    return Clusters(np.argsort(order)[found], np.concatenate(distances), model.cluster_centers_[order])

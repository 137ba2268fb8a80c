"""Which rows are alike: exact cosine neighbours, near-duplicates, outliers.

Everything works on a block of rows and a block of similarities at a time, so features in a mapped file may
be larger than memory. A search reads every row once; near-duplicates and outliers compare every row with
every other.
"""

import logging
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor

from byol.data.groups import groups_of, join
from byol.errors import ConfigError, DataError
from byol.features.features import BLOCK, Features, Rows, Values, block_rows, matrix, unit, unit_blocks
from byol.features.formats import Array
from byol.world import pick_device

logger = logging.getLogger("byol")
ROUNDING = 1e-6  # of a cosine in float32: equal rows can come out this far below 1


@dataclass(frozen=True)
class Neighbours:
    """The rows most similar to each query, the most similar first."""

    rows: Rows  # (Q, k)
    similarities: Values  # (Q, k) cosines, from -1 to 1


@dataclass(frozen=True)
class Outliers:
    """The rows farthest from the others, the farthest first."""

    rows: Rows  # (n,)
    distances: Values  # (n,) mean of 1 - cosine over the nearest other rows, from 0 to 2


def search(
    features: Features | Array,
    query: Features | Array | None = None,
    *,
    rows: Any = None,
    k: int = 10,
    device: str | None = "cpu",
) -> Neighbours:
    """The k rows of `features` (N, D) with the highest cosine to each query; all there are when k is larger.

    Exact up to float32 rounding; of equal cosines the lower row comes first. Queries are vectors `query`
    (Q, D), or the numbers `rows` (Q,) of rows of the features, which do not find themselves. Raises
    ConfigError for k below 1 or rows that are not there, DataError for queries that are empty, not finite
    or of another width.
    """
    x = matrix(features)
    check_at_least_one("k", k)
    if (query is None) == (rows is None):
        raise ConfigError("A search needs either query=, vectors (Q, D), or rows=, numbers of feature rows.")
    if query is None:
        numbers = row_numbers(rows, len(x))
        queries = x[numbers]
        cosines, found = _nearest_others(x, numbers, k, device)
    else:
        queries = matrix(query)
        if queries.shape[1] != x.shape[1]:
            widths = f"{queries.shape[1]}-dimensional and the features {x.shape[1]}-dimensional"
            raise DataError(f"The queries are {widths}; expected both from the same encoder.")
        cosines, found = nearest(x, torch.tensor(queries, device=pick_device(device)), k)
    zeros = np.flatnonzero(~queries.any(axis=1))
    if len(zeros):
        which = f"{len(zeros)} of {len(queries)} queries are all zeros, the first is number {zeros[0]}"
        logger.warning("%s: their similarity to everything is 0.", which)
    return Neighbours(found.cpu().numpy(), cosines.cpu().numpy())


def near_duplicates(
    features: Features | Array, similarity: float = 0.97, *, device: str | None = "cpu"
) -> list[Rows]:
    """Groups of two or more rows whose cosine is at least `similarity`, the largest group first, rows rising.

    A group is a chain: each row is that similar to some other row of it, not to all. N x N comparisons.
    Raises ConfigError for a similarity that is not above 0 and at most 1.
    """
    if not 0 < similarity <= 1:
        raise ConfigError(f"similarity is {similarity}; expected above 0 and at most 1, such as 0.97.")
    x = matrix(features)
    group = np.arange(len(x))  # of each row: the lowest row it is known to be linked to
    for first, rows in unit_blocks(x, pick_device(device)):
        for other, columns in unit_blocks(x[first:], rows.device):
            for place, part in enumerate(rows.split(size := max(1, BLOCK // (4 * len(columns))))):
                pairs = (part @ columns.T >= similarity - ROUNDING).nonzero().cpu().numpy()
                join(group, pairs[:, 0] + (first + place * size), pairs[:, 1] + (first + other))
    return groups_of(group)


def outliers(
    features: Features | Array, count: int = 10, *, k: int = 10, device: str | None = "cpu"
) -> Outliers:
    """The `count` rows least like their k nearest other rows, by mean cosine (Angiulli and Pizzuti 2002).

    N x N comparisons.
    """
    x = matrix(features)
    check_at_least_one("The number of outliers", count)
    check_at_least_one("k", k)
    parts = np.split(np.arange(len(x)), range(step := block_rows(x), len(x), step))
    distances = torch.cat([1 - _nearest_others(x, rows, k, device)[0].mean(dim=1) for rows in parts])
    top = distances.sort(descending=True, stable=True)
    return Outliers(top.indices[:count].cpu().numpy(), top.values[:count].cpu().numpy())


def nearest(bank: Tensor | Array, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k highest cosines of each query (Q, D) with rows of a bank (N, D), and these: both (Q, min(k, N)).

    Falling; of equal cosines the lower row comes first. Works on the queries' device, on a block of the
    bank and of the queries at a time; the bank is read once.
    """
    parts = unit(queries).split(max(1, BLOCK // (4 * block_rows(bank))))
    best = [
        (part[:, :0], torch.empty((len(part), 0), dtype=torch.int64, device=part.device)) for part in parts
    ]
    for first, rows in unit_blocks(bank, queries.device):
        for place, part in enumerate(parts):
            cosines, found = _highest((part @ rows.T).clamp_(-1, 1), k)
            cosines = torch.cat((best[place][0], cosines), dim=1)
            found = torch.cat((best[place][1], found + first), dim=1)
            cosines, order = _highest(cosines, k)
            best[place] = cosines, found.gather(1, order)
    return torch.cat([cosines for cosines, _ in best]), torch.cat([found for _, found in best])


def _highest(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k highest of each row (Q, N), falling, and their columns, the lower of equal ones first."""
    top, columns = values.topk(min(k + 1, values.shape[1]), dim=1)
    equal = (top[:, 1:] == top[:, :-1]).any(dim=1)  # of such topk takes any, in any order
    if equal.any():
        columns[equal] = values[equal].argsort(dim=1, descending=True, stable=True)[:, : top.shape[1]]
    return top[:, :k], columns[:, :k]


def _nearest_others(x: Array, rows: Rows, k: int, device: str | None) -> tuple[Tensor, Tensor]:
    """As `nearest` for rows (Q,) of the matrix (N, D) itself; each is left out of its own neighbours."""
    if len(x) < 2:
        raise DataError("There is one feature row; expected at least two to compare.")
    k = min(k, len(x) - 1)
    cosines, found = nearest(x, torch.tensor(x[rows], device=pick_device(device)), k + 1)
    own = found == torch.from_numpy(rows).to(found.device)[:, None]
    own[~own.any(dim=1), -1] = True  # so many equal rows that it is not among them: the last one gives way
    return cosines[~own].view(-1, k), found[~own].view(-1, k)


def row_numbers(rows: Any, count: int) -> Rows:
    """Numbers of rows as int64 (n,). Raises ConfigError for those that are not there."""
    chosen = np.atleast_1d(np.asarray(rows))
    if chosen.ndim != 1 or len(chosen) == 0 or chosen.dtype.kind not in "iu":
        came = f"{chosen.dtype} of shape {chosen.shape}"
        raise ConfigError(f"The rows are {came}; expected whole numbers, at least one.")
    for wrong in chosen[(chosen < 0) | (chosen >= count)]:
        raise ConfigError(f"There is no row {wrong}: the features have {count:,} rows, counted from 0.")
    return chosen.astype(np.int64)


def check_at_least_one(what: str, number: int) -> None:
    """Raise ConfigError for anything but a whole number from 1."""
    if not isinstance(number, Integral) or number < 1:
        raise ConfigError(f"{what} is {number}; expected a whole number of at least 1.")

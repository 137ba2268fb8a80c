"""Rows that belong together, joined pair by pair."""

from typing import Any

import numpy as np

Rows = np.ndarray[Any, np.dtype[np.int64]]


def join(group: Rows, first: Rows, second: Rows) -> None:
    """Make one group of the groups of each pair of rows (P,), in place.

    `group` (N,) holds for each row the lowest row that it is known to be linked to; at first its own number.
    """
    while not np.array_equal(one := group[first], other := group[second]):
        np.minimum.at(group, np.maximum(one, other), np.minimum(one, other))
        while not np.array_equal(group, lower := group[group]):
            group[:] = lower


def groups_of(group: Rows) -> list[Rows]:
    """The groups of two or more rows, the largest first; the rows of each rise."""
    order = np.argsort(group, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(group[order])) + 1)
    return sorted((part for part in groups if len(part) > 1), key=lambda part: (-len(part), part[0]))

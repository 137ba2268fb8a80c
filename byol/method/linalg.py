"""Decompositions in float32, and in float64 of what LAPACK gives up on."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def decomposed(function: Callable[..., Any], matrix: Tensor, **options: Any) -> Any:
    """What torch's `eigh`, `svd` or `svdvals` gives of a float32 matrix: a tensor, or several.

    Of some of low rank, as where half of a network's features are dead, the algorithm does not converge; of
    which hangs on the CPU. In float64 it does, in twice the time.
    """
    try:
        return function(matrix, **options)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # is missing in its list of names
        found = function(matrix.double(), **options)
    return found.float() if isinstance(found, Tensor) else tuple(part.float() for part in found)

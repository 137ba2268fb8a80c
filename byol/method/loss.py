"""The regression loss (paper Eq. 2; official helpers.py: regression_loss)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from byol.errors import ConfigError


def regression_loss(prediction: Tensor, projection: Tensor) -> Tensor:
    """Squared distance of the normalised rows, 2 - 2 cos: (B, D) and (B, D) to float32 (B,), from 0 to 4.

    Always computed in float32, also under autocast: bf16 loses the differences a normalised loss lives on.
    """
    if prediction.shape != projection.shape:
        shapes = f"{tuple(prediction.shape)}, the projection {tuple(projection.shape)}"
        raise ConfigError(f"The prediction has shape {shapes}; expected the same.")
    with torch.autocast(prediction.device.type, enabled=False):
        return (normalize(prediction.float()) - normalize(projection.float())).square().sum(dim=-1)


def average(projections: Sequence[Tensor]) -> Tensor:
    """The mean of the normalised projections, each (B, D): what all of them say in common."""
    return torch.stack([normalize(projection.float()) for projection in projections]).mean(dim=0)


def normalize(x: Tensor) -> Tensor:
    """Rows of length 1; a zero row stays zero, and its gradient finite (official floor 1e-12)."""
    return x * x.square().sum(dim=-1, keepdim=True).clamp_min(1e-12).rsqrt()

"""Projector and predictor (paper §3.3; official networks.py: MLP)."""

from torch import nn


def mlp(in_features: int, hidden: int, out_features: int) -> nn.Sequential:
    """Linear, BatchNorm, ReLU, Linear without bias: (B, in_features) to (B, out_features). Nothing normalises the output."""
    return nn.Sequential(
        nn.Linear(in_features, hidden),
        nn.BatchNorm1d(hidden),
        nn.ReLU(inplace=True),
        nn.Linear(hidden, out_features, bias=False),
    )

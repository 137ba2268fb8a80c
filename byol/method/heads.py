"""Projector and predictor (paper §3.3; official networks.py: MLP)."""

from math import sqrt

from torch import Tensor, nn


def mlp(in_features: int, hidden: int, out_features: int, batchnorm: bool = True) -> nn.Sequential:
    """Linear, BatchNorm, ReLU, Linear without bias: (B, in_features) to (B, out_features), not normalised."""
    first, last = nn.Linear(in_features, hidden), nn.Linear(hidden, out_features, bias=False)
    for layer in (first, last):
        init_truncated(layer.weight)
    nn.init.zeros_(first.bias)
    norm = [nn.BatchNorm1d(hidden)] if batchnorm else []
    return nn.Sequential(first, *norm, nn.ReLU(inplace=True), last)


def linear(in_features: int, hidden: int, out_features: int) -> nn.Linear:
    """A predictor of one layer (Tian et al., arXiv 2102.06810); `hidden` is not used."""
    layer = nn.Linear(in_features, out_features, bias=False)
    init_truncated(layer.weight)
    return layer


def simsiam_mlp(in_features: int, hidden: int, out_features: int) -> nn.Sequential:
    """SimSiam's projector (Chen & He 2020, §3): three Linear without bias and a BatchNorm behind each."""
    layers: list[nn.Module] = []
    for wide, gives in ((in_features, hidden), (hidden, hidden), (hidden, out_features)):
        linear = nn.Linear(wide, gives, bias=False)
        init_truncated(linear.weight)
        layers += [linear, nn.BatchNorm1d(gives, affine=len(layers) < 6), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers[:-1])


def init_truncated(weight: Tensor) -> None:
    """Haiku's default weights: normal of 1/sqrt(fan_in), cut at twice that and not rescaled."""
    std = 1 / sqrt(weight[0].numel())
    nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)

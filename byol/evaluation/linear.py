"""Multinomial logistic regression on frozen features (paper §4.1 and Appendix D.2: L-BFGS, l2 chosen on training images)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from byol.errors import DataError

L2 = tuple(10 ** (-6 + 11 * i / 44) for i in range(45))  # paper: 45 values, even in the logarithm, from 1e-6 to 1e5
HELD_OUT = 0.1  # of the training images, to choose the l2 on


@dataclass(frozen=True)
class Classifier:
    """A linear classifier of standardised features."""

    weight: Tensor  # (classes, D)
    bias: Tensor  # (classes,)
    mean: Tensor  # (D,) of the training features
    std: Tensor  # (D,)
    l2: float

    def __call__(self, x: Tensor) -> Tensor:
        """The class of each row (N, D): int64 (N,)."""
        return logits((x - self.mean) / self.std, self.weight, self.bias).argmax(dim=1)


def fit(x: Tensor, y: Tensor, classes: int, *, l2: Sequence[float] = L2, seed: int = 0) -> Classifier:
    """Fit on features (N, D) with labels int64 (N,): the l2 is chosen on a tenth of them held out, then all are used.

    Minimises mean cross-entropy + l2 / 2 * |weight|^2 on standardised features. With too few images to hold out one of
    each kind, the middle of the l2 values is taken.
    """
    if len(y.unique()) < 2:
        raise DataError("Logistic regression needs at least two classes among the training images; there is one.")
    mean = x.mean(dim=0)
    std = x.std(dim=0, correction=0)
    std = torch.where(std > 1e-6 * std.max(), std, torch.ones_like(std))  # constant dimensions carry nothing
    x = (x - mean) / std
    shuffled = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    held_out, rest = shuffled[: int(HELD_OUT * len(x))], shuffled[int(HELD_OUT * len(x)) :]
    best = sorted(l2)[len(l2) // 2]
    if len(l2) > 1 and len(held_out) >= classes and len(y[rest].unique()) > 1:
        best = choose(x[rest], y[rest], x[held_out], y[held_out], classes, l2)
    weight, bias = minimise(x, y, torch.zeros(classes, x.shape[1] + 1, device=x.device), best)
    return Classifier(weight, bias, mean, std, best)


def choose(x: Tensor, y: Tensor, held_out_x: Tensor, held_out_y: Tensor, classes: int, l2: Sequence[float]) -> float:
    """The l2 with the best held-out accuracy (the larger of equals). Each fit starts where the one before ended."""
    start = torch.zeros(classes, x.shape[1] + 1, device=x.device)
    best, best_score = max(l2), -1.0
    for value in sorted(l2, reverse=True):
        weight, bias = minimise(x, y, start, value)
        start = torch.cat([weight, bias[:, None]], dim=1)
        score = (logits(held_out_x, weight, bias).argmax(dim=1) == held_out_y).float().mean().item()
        if score > best_score:
            best, best_score = value, score
    return best


def minimise(x: Tensor, y: Tensor, start: Tensor, l2: float) -> tuple[Tensor, Tensor]:
    """L-BFGS from a start (classes, D + 1), the bias last, to where the gradient vanishes. Returns weight and bias."""
    parameters = start.clone().requires_grad_(True)
    solver = torch.optim.LBFGS(
        [parameters], max_iter=300, history_size=10, tolerance_grad=1e-5, tolerance_change=1e-9, line_search_fn="strong_wolfe"
    )

    def objective() -> Tensor:
        solver.zero_grad()
        weight, bias = parameters[:, :-1], parameters[:, -1]
        loss = F.cross_entropy(logits(x, weight, bias), y) + l2 / 2 * weight.square().sum()
        loss.backward()
        return loss

    solver.step(objective)
    result = parameters.detach()
    return result[:, :-1], result[:, -1]


def logits(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(N, classes) of features (N, D)."""
    return torch.addmm(bias, x, weight.T)

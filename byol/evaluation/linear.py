"""Logistic regression on frozen features (paper §4.1 and Appendix D.2: L-BFGS, l2 chosen on training images).

One label an image: multinomial. Several: one yes or no a class, all with the same l2.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from byol.errors import DataError
from byol.evaluation.subsets import held_out

L2 = tuple(
    10 ** (-6 + 11 * i / 44) for i in range(45)
)  # paper: 45 values, even in the logarithm, from 1e-6 to 1e5
logger = logging.getLogger("byol")
HELD_OUT = 0.1  # of the training images, to choose the l2 on
BLOCK = 2**24  # logits held at once
ROWS = 8192  # of features standardised at once
ROUNDS = 8  # of L-BFGS, each with the scale that the one before found; nearly always the first is enough
TOLERANCE = 1e-4  # of a gradient where the curvature is about 1: the loss is then within 1e-6 of its minimum

Measure = Callable[[Tensor, Tensor], float]  # of logits (N, classes) and labels, the larger the better


@dataclass(frozen=True)
class Classifier:
    """A linear classifier of standardised features."""

    weight: Tensor  # (classes, D)
    bias: Tensor  # (classes,)
    mean: Tensor  # (D,) of the training features
    std: Tensor  # (D,)
    l2: float
    held_out: int  # images that the l2 was chosen on; 0 when it was not chosen

    def logits(self, x: Tensor) -> Tensor:
        """(N, classes) of features (N, D)."""
        parts = [logits((part - self.mean) / self.std, self.weight, self.bias) for part in x.split(ROWS)]
        return torch.cat(parts)

    def __call__(self, x: Tensor) -> Tensor:
        """The class of each row (N, D): int64 (N,)."""
        return self.logits(x).argmax(dim=1)


def accuracy(scores: Tensor, y: Tensor) -> float:
    """The share of rows whose largest logit is that of their class."""
    return (scores.argmax(dim=1) == y).float().mean().item()


def fit(
    x: Tensor,
    y: Tensor,
    classes: int,
    *,
    l2: Sequence[float] = L2,
    seed: int = 0,
    measure: Measure = accuracy,
) -> Classifier:
    """Fit on features (N, D) with labels int64 (N,), or (N, classes) of 0 and 1, on the features' device.

    The l2 is chosen on a tenth of every class held out, by the measure (the larger of equals), then all are learned from.
    Minimises the mean cross-entropy + l2 / 2 * |weight|^2 on standardised features. With fewer than ten images a class on
    average the middle of the l2 values is taken.
    """
    if len(y.unique(dim=0)) < 2:
        raise DataError(
            "Logistic regression needs at least two classes among the training images; there is one."
        )
    mean, std = moments(x)
    order, count = held_out_first(y, seed)
    axes, variance = principal_axes(x, mean, std)
    z, y = rotated(x, mean, std, axes, order), y[order]
    best = sorted(l2)[len(l2) // 2]
    occurring = classes if y.ndim == 2 else len(y.unique())
    if len(l2) > 1 and HELD_OUT * len(x) >= occurring and len(y[count:].unique(dim=0)) > 1:
        best = choose(z[count:], y[count:], z[:count], y[:count], classes, l2, variance, measure)
    else:
        count = 0
        if len(l2) > 1:
            words = "The classes have fewer than ten images each on average, so no l2 is chosen and the middle of %d is taken."
            logger.warning(words, len(l2))
    start = torch.zeros(classes, z.shape[1] + 1, device=x.device)
    weight, bias = minimise(z, y, start, best, variance, tolerance=TOLERANCE / 10)
    return Classifier(weight @ axes.T, bias, mean, std, best, count)


def held_out_first(y: Tensor, seed: int) -> tuple[Tensor, int]:
    """All rows shuffled, on the labels' device, with those to choose on first, and how many these are.

    They are a tenth of every class; where images have several labels a tenth of all.
    """
    shuffled = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    if y.ndim == 2:
        return shuffled.to(y.device), int(HELD_OUT * len(y))
    chosen = torch.zeros(len(y), dtype=torch.bool)
    chosen[torch.from_numpy(held_out(y.cpu().numpy(), HELD_OUT, seed)[1])] = True
    return torch.cat([shuffled[chosen[shuffled]], shuffled[~chosen[shuffled]]]).to(y.device), int(
        chosen.sum()
    )


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """The mean and the deviation (D,) of each feature; constant ones, which carry nothing, get a deviation of 1."""
    mean, std = x.mean(dim=0), x.std(dim=0, correction=0)
    return mean, torch.where(std > 1e-6 * std.max(), std, torch.ones_like(std))


def principal_axes(x: Tensor, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """Orthonormal axes (D, min(N, D)) of the standardised features along which they do not correlate, and the variances.

    A rotation changes neither the loss nor |weight|^2, but along these axes the curvature is known beforehand, so that
    L-BFGS needs about a tenth of the steps. With fewer images than features nothing lies outside the axes.
    """
    if len(x) < x.shape[1]:
        _, values, rows = torch.linalg.svd((x - mean) / std, full_matrices=False)
        return rows.T.contiguous(), values.square() / len(x)
    covariance = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64, device=x.device)
    for part in x.split(ROWS):
        part = (part - mean) / std
        covariance += part.T @ part
    values, axes = torch.linalg.eigh(covariance / len(x))
    return axes.float(), values.clamp(min=0).float()


def rotated(x: Tensor, mean: Tensor, std: Tensor, axes: Tensor, order: Tensor) -> Tensor:
    """The standardised features in a new order, along the axes: (N, axes). The only copy of them that is made."""
    z = x.new_empty(len(x), axes.shape[1])
    for part, rows in zip(z.split(ROWS), order.split(ROWS), strict=True):
        torch.mm((x[rows] - mean) / std, axes, out=part)
    return z


def choose(
    x: Tensor,
    y: Tensor,
    held_out_x: Tensor,
    held_out_y: Tensor,
    classes: int,
    l2: Sequence[float],
    variance: Tensor,
    measure: Measure = accuracy,
) -> float:
    """The l2 that does best on the held-out images, the larger of equals.

    From the largest l2 on, each fit starts where the two before it point to.
    """
    before = start = torch.zeros(classes, x.shape[1] + 1, device=x.device)
    best, best_score = max(l2), -1.0
    for value in sorted(l2, reverse=True):
        weight, bias = minimise(x, y, 2 * start - before, value, variance)
        before, start = start, torch.cat([weight, bias[:, None]], dim=1)
        score = measure(logits(held_out_x, weight, bias), held_out_y)
        if score > best_score:
            best, best_score = value, score
    return best


@torch.no_grad()
def minimise(
    x: Tensor, y: Tensor, start: Tensor, l2: float, variance: Tensor, tolerance: float = TOLERANCE
) -> tuple[Tensor, Tensor]:
    """L-BFGS from a start (classes, D + 1), the bias last, to where the gradient vanishes. Returns weight and bias.

    The features have the given variances (D,). The parameters are scaled so that the curvature is about 1 in every
    direction: it is p (1 - p) times the variance, plus l2.
    """
    result, now = start, curvature(x, y, start)
    for _ in range(ROUNDS):
        scale = torch.cat([now * variance + l2, now[None]]).rsqrt()
        result = lbfgs(x, y, result / scale, scale, l2, tolerance) * scale
        before, now = now, curvature(x, y, result)
        if now > before / 2:  # else the gradient was small because the scale was wrong
            break
    return result[:, :-1], result[:, -1]


def curvature(x: Tensor, y: Tensor, parameters: Tensor) -> Tensor:
    """The mean of p (1 - p) over the classes and the first rows, a scalar above 0."""
    some = logits(x[:ROWS], parameters[:, :-1], parameters[:, -1])
    p = some.softmax(dim=1) if y.ndim == 1 else some.sigmoid()
    return (p * (1 - p)).mean().clamp(min=1e-6)


def lbfgs(x: Tensor, y: Tensor, start: Tensor, scale: Tensor, l2: float, tolerance: float) -> Tensor:
    """Where the loss of `parameters * scale` is least, from a start (classes, D + 1) on."""
    parameters = start.clone()
    solver = torch.optim.LBFGS(
        [parameters],
        max_iter=300,
        tolerance_grad=tolerance,
        tolerance_change=1e-9,
        line_search_fn="strong_wolfe",
    )

    @torch.no_grad()  # the gradient is given by hand: autograd would keep more copies of the logits
    def objective() -> Tensor:
        loss, gradient = loss_and_gradient(x, y, parameters * scale, l2)
        parameters.grad = gradient * scale
        return loss

    solver.step(objective)
    return parameters


def loss_and_gradient(x: Tensor, y: Tensor, parameters: Tensor, l2: float) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy + l2 / 2 * |weight|^2, float64 (), and its gradient by the parameters (classes, D + 1)."""
    weight, bias = parameters[:, :-1].contiguous(), parameters[:, -1]
    # float64: the line search compares losses that float32 cannot tell apart
    loss = l2 / 2 * weight.double().square().sum()
    by_weight, by_bias = l2 * weight, torch.zeros_like(bias)
    size = max(1, BLOCK // len(bias))
    for rows, labels in zip(x.split(size), y.split(size), strict=True):
        z = logits(rows, weight, bias)
        if y.ndim == 1:
            log_p = F.log_softmax(z, dim=1)
            loss += F.nll_loss(log_p, labels, reduction="none").sum(dtype=torch.float64) / len(x)
            error = log_p.exp_().scatter_add_(1, labels[:, None], z.new_full((len(z), 1), -1.0))
        else:
            truth = labels.to(z.dtype)
            loss += F.binary_cross_entropy_with_logits(z, truth, reduction="none").sum(
                dtype=torch.float64
            ) / len(x)
            error = z.sigmoid_().sub_(truth)
        by_weight.addmm_(error.T, rows, alpha=1 / len(x))
        by_bias += error.sum(dim=0) / len(x)
    return loss, torch.cat([by_weight, by_bias[:, None]], dim=1)


def logits(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(N, classes) of features (N, D)."""
    return torch.addmm(bias, x, weight.T)

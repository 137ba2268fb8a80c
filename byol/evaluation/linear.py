"""Logistic regression on frozen features (paper §4.1, §D.2): L-BFGS, the l2 chosen on training images.

With one label an image it is multinomial; multi-label it is a yes or no for each class, all with the same l2.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from byol.errors import DataError
from byol.evaluation.classifier import LinearClassifier
from byol.evaluation.metrics import BLOCK, measure, predict
from byol.evaluation.subsets import validation_split
from byol.method.linalg import decomposed

L2 = tuple(10 ** (-6 + 11 * i / 44) for i in range(45))  # as in the paper, even in the logarithm
logger = logging.getLogger("byol")
VALIDATION = 0.1  # share of the training images that the l2 is chosen on
ROWS = 8192  # of features standardised at once
HISTORY = 2**28  # numbers of L-BFGS's memory, which is 100 steps up to 2,048 features x 650 classes
ROUNDS = 8  # of L-BFGS, each with the scale that the one before found; nearly always the first is enough
TOLERANCE = 1e-4  # of a gradient where the curvature is about 1: the loss is within 1e-6 of its minimum


@dataclass(frozen=True)
class LogisticRegression:
    """A linear classifier of standardised features, and how it was found."""

    classifier: LinearClassifier
    classes: Tensor | None  # int64 (C,), those that occur; None when multi-label, then all
    l2: float
    validation_images: int  # that the l2 was chosen on; 0 when it was not chosen

    def predict(self, x: Tensor) -> Tensor:
        """Predictions for features (N, D)."""
        return self.classifier.predict(x, self.classes)


def fit(
    x: Tensor, y: Tensor, *, l2: Sequence[float] = L2, metric: str = "top1", seed: int = 0
) -> LogisticRegression:
    """Fit on features (N, D) with labels int64 (N,), or (N, classes) of 0 and 1, on the features' device.

    Minimises the mean cross-entropy + l2 / 2 * |weight|^2 on standardised features. The l2 is the one that
    does best by the metric on a tenth of every class, the larger of equals; then all are learned from. With
    fewer than ten images a class on average the middle of the l2 values is taken.
    """
    if len(y.unique(dim=0)) < 2:
        raise DataError("Logistic regression needs two classes among the training images; there is one.")
    classes, y = (None, y) if y.ndim == 2 else y.unique(return_inverse=True)
    count = y.shape[1] if classes is None else len(classes)
    groups = np.zeros(len(y), dtype=np.int64) if classes is None else y.cpu().numpy()
    learn, validate = validation_split(groups, VALIDATION, seed)
    order, held = torch.from_numpy(np.concatenate([validate, learn])).to(x.device), len(validate)
    mean, std, axes, variance = principal_axes(x)
    z, y = x.new_empty(len(x), axes.shape[1]), y[order]  # the only copy that is made
    for part, rows in zip(z.split(ROWS), order.split(ROWS), strict=True):
        torch.mm((x[rows] - mean) / std, axes, out=part)
    start = before = now = z.new_zeros(count, z.shape[1] + 1)
    best, best_score = sorted(l2)[len(l2) // 2], -1.0
    if len(l2) == 1 or VALIDATION * len(x) < count or len(y[held:].unique(dim=0)) < 2:
        held = 0
    # From the largest l2 on, each fit starts where the two before it point to.
    for value in sorted(l2, reverse=True) if held else ():
        before, now = now, minimise(z[held:], y[held:], 2 * now - before, value, variance)
        logits = partial(F.linear, weight=now[:, :-1], bias=now[:, -1])
        columns = None if classes is None else torch.arange(count, device=x.device)
        found = predict(z[:held], logits, columns, width=count, count=1)
        score = measure(metric, found.cpu().numpy(), y[:held].cpu().numpy())
        if score > best_score:
            best, best_score = value, score
    if not held and len(l2) > 1:
        words = (
            "There are fewer than ten images a class on average: no l2 is chosen, the middle of %d is taken."
        )
        logger.warning(words, len(l2))
    parameters = minimise(z, y, start, best, variance, tolerance=TOLERANCE / 10)
    weight, bias = parameters[:, :-1] @ axes.T, parameters[:, -1]
    classifier = LinearClassifier(weight, bias, mean, std, multi_label=classes is None)
    return LogisticRegression(classifier, classes, best, held)


def principal_axes(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The mean and std (D,) of features (N, D), and the principal axes of the standardised ones.

    These are orthonormal (D, min(N, D)); fourth come the variances along them. A rotation changes neither
    the loss nor |weight|^2, but along these axes the curvature is known beforehand, so that L-BFGS needs
    about a tenth of the steps. With fewer images than features nothing lies outside the axes.
    """
    mean, std = x.mean(dim=0), x.std(dim=0, correction=0)
    std = torch.where(std > 1e-6 * std.max(), std, torch.ones_like(std))  # constant features carry nothing
    if len(x) < x.shape[1]:
        _, values, rows = decomposed(torch.linalg.svd, (x - mean) / std, full_matrices=False)
        return mean, std, rows.T.contiguous(), values.square() / len(x)
    covariance = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64, device=x.device)
    for part in x.split(ROWS):
        part = (part - mean) / std
        covariance += part.T @ part
    values, axes = torch.linalg.eigh(covariance / len(x))
    return mean, std, axes.float(), values.clamp(min=0).float()


@torch.no_grad()
def minimise(
    x: Tensor, y: Tensor, start: Tensor, l2: float, variance: Tensor, tolerance: float = TOLERANCE
) -> Tensor:
    """L-BFGS from a start (C, D + 1), the bias last, to where the gradient vanishes: parameters (C, D + 1).

    The features have the given variances (D,). The parameters are scaled so that the curvature is about 1
    in every direction: it is p (1 - p) times the variance, plus l2.
    """
    result, now = start, curvature(x, y, start)
    for _ in range(ROUNDS):
        scale = torch.cat([now * variance + l2, now[None]]).rsqrt()
        parameters = result / scale
        history = max(5, min(100, HISTORY // start.numel()))
        ends: dict[str, Any] = {"max_iter": 300, "tolerance_grad": tolerance, "tolerance_change": 1e-9}
        solver = torch.optim.LBFGS([parameters], history_size=history, line_search_fn="strong_wolfe", **ends)

        @torch.no_grad()
        def objective(parameters: Tensor = parameters, scale: Tensor = scale) -> Tensor:
            loss, gradient = loss_and_gradient(x, y, parameters * scale, l2)
            parameters.grad = gradient * scale
            return loss

        solver.step(objective)
        result = parameters * scale
        before, now = now, curvature(x, y, result)
        if now > before / 2:  # else the gradient was small because the scale was wrong
            break
    return result


def curvature(x: Tensor, y: Tensor, parameters: Tensor) -> Tensor:
    """The mean of p (1 - p) over the classes and some rows, a scalar above 0."""
    logits = F.linear(x[:: 1 + len(x) // ROWS], parameters[:, :-1], parameters[:, -1])
    p = logits.softmax(dim=1) if y.ndim == 1 else logits.sigmoid()
    return (p * (1 - p)).mean().clamp(min=1e-6)


def loss_and_gradient(x: Tensor, y: Tensor, parameters: Tensor, l2: float) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy + l2 / 2 * |weight|^2, float64 (), and its gradient by the parameters (C, D + 1).

    By hand, a block of rows at a time: autograd would keep more copies of the logits.
    """
    weight, bias = parameters[:, :-1].contiguous(), parameters[:, -1]
    # float64: the line search compares losses that float32 cannot tell apart
    loss = l2 / 2 * weight.double().square().sum()
    by_weight, by_bias = l2 * weight, torch.zeros_like(bias)
    for rows, labels in zip(*(part.split(max(1, BLOCK // len(bias))) for part in (x, y)), strict=True):
        logits = F.linear(rows, weight, bias)
        if y.ndim == 1:
            log_p = F.log_softmax(logits, dim=1)
            losses = F.nll_loss(log_p, labels, reduction="none")
            error = log_p.exp_().scatter_add_(1, labels[:, None], logits.new_full((len(rows), 1), -1.0))
        else:
            truth = labels.to(logits.dtype)
            losses = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
            error = logits.sigmoid_().sub_(truth)
        loss += losses.sum(dtype=torch.float64) / len(x)
        by_weight.addmm_(error.T, rows, alpha=1 / len(x))
        by_bias += error.sum(dim=0) / len(x)
    return loss, torch.cat([by_weight, by_bias[:, None]], dim=1)

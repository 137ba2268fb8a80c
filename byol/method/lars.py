"""LARS as the official code has it (optimizers.py): weight decay, trust ratio, momentum, learning rate."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from byol.errors import ConfigError


class LARS(torch.optim.Optimizer):
    """Layer-wise adaptive rate scaling (You et al. 2017), number for number the official BYOL optimizer.

        g = g + weight_decay * w
        g = g * eta * |w| / |g|            (ratio 1 when either norm is 0)
        buffer = momentum * buffer + g
        w = w - lr * buffer

    Parameters with at most one dimension (biases, BatchNorm) skip the first two lines however they are
    grouped. Norms stay on the device: a step never waits for it. Raises ConfigError for values outside their
    range.
    """

    def __init__(
        self, params: ParamsT, lr: float, momentum: float = 0.9, weight_decay: float = 0.0, eta: float = 1e-3
    ) -> None:
        for name, value in (("lr", lr), ("weight_decay", weight_decay), ("eta", eta)):
            if not 0 <= value < math.inf:
                raise ConfigError(f"LARS got {name}={value}; expected a number of 0 or more.")
        if not 0 <= momentum < 1:
            raise ConfigError(f"LARS got momentum={momentum}; expected 0 or more and less than 1.")
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "eta": eta})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient. Returns the loss of a closure that is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            with_gradient = [p for p in group["params"] if p.grad is not None]
            for adapted in (True, False):
                chosen = [p for p in with_gradient if (p.ndim > 1) is adapted]
                for parameters in _by_kind(chosen):
                    self._update(parameters, group, adapted)
        return loss

    def _update(self, parameters: list[Tensor], group: dict[str, Any], adapted: bool) -> None:
        """Update parameters of one device and type with a few kernels for all of them."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        if adapted:
            gradients = list(torch._foreach_add(gradients, parameters, alpha=group["weight_decay"]))
            ratios = trust_ratios(parameters, gradients, group["eta"])
            torch._foreach_mul_(gradients, ratios)
        buffers = []
        for p in parameters:
            if "momentum" not in self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
            buffers.append(self.state[p]["momentum"])
        torch._foreach_mul_(buffers, group["momentum"])
        torch._foreach_add_(buffers, gradients)
        torch._foreach_add_(parameters, buffers, alpha=-group["lr"])


def trust_ratios(parameters: list[Tensor], gradients: list[Tensor], eta: float) -> list[Tensor]:
    """eta * |w| / |g| for each parameter, 1 where either norm is 0; scalars on the device."""
    weights = torch.stack(torch._foreach_norm(parameters))
    slopes = torch.stack(torch._foreach_norm(gradients))
    ratios = torch.where((weights > 0) & (slopes > 0), eta * weights / slopes, torch.ones_like(weights))
    return list(ratios.unbind())


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters in two groups for any optimizer: biases and norms go without weight decay."""
    trainable = [p for p in module.parameters() if p.requires_grad]
    if not trainable:
        raise ConfigError(f"{type(module).__name__} has no trainable parameter to optimise.")
    return [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]


def _by_kind(parameters: Iterable[Tensor]) -> Iterable[list[Tensor]]:
    kinds: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for p in parameters:
        kinds.setdefault((p.device, p.dtype), []).append(p)
    return kinds.values()

"""LARS as the official code has it (optimizers.py): weight decay, trust ratio, momentum, learning rate."""

import math
from collections.abc import Callable
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
        """One update of every parameter that has a gradient. Returns the loss of `closure`, if any."""
        with torch.enable_grad():
            loss = None if closure is None else closure()
        for group in self.param_groups:
            kinds: dict[Any, list[Tensor]] = {}  # a few kernels update all parameters of one kind
            for p in group["params"]:
                if p.grad is not None:
                    kinds.setdefault((p.device, p.dtype, p.ndim > 1), []).append(p)
            for (_, _, adapted), parameters in kinds.items():
                self._update(parameters, group, adapted)
        return loss

    def _update(self, parameters: list[Tensor], group: dict[str, Any], adapted: bool) -> None:
        gradients = [p.grad for p in parameters if p.grad is not None]
        if adapted:
            gradients = list(torch._foreach_add(gradients, parameters, alpha=group["weight_decay"]))
            weights, slopes = (torch.stack(torch._foreach_norm(part)) for part in (parameters, gradients))
            ratios = torch.where((weights > 0) & (slopes > 0), group["eta"] * weights / slopes, 1.0)
            torch._foreach_mul_(gradients, list(ratios.unbind()))
        for p in parameters:
            if "momentum" not in self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
        buffers = [self.state[p]["momentum"] for p in parameters]
        torch._foreach_mul_(buffers, group["momentum"])
        torch._foreach_add_(buffers, gradients)
        torch._foreach_add_(parameters, buffers, alpha=-group["lr"])


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters in two groups for any optimizer: biases and norms go without weight decay."""
    trainable = [p for p in module.parameters() if p.requires_grad]
    if not trainable:
        raise ConfigError(f"{type(module).__name__} has no trainable parameter to optimise.")
    return [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]

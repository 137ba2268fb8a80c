"""BatchNorm whose statistics several processes share, as the paper's do (official: `cross_replica_axis`).

On GPUs torch has it, `nn.SyncBatchNorm`. On CPUs that refuses, and this stands in: the numbers of BatchNorm
over all processes' images in one batch, forward, backward and running statistics.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm

from byol.errors import ConfigError


def several_processes() -> bool:
    """Whether this is one of several processes that train together."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


class SharedBatchNorm(_BatchNorm):
    """BatchNorm over the batches of all processes while it trains; without a process group over its own."""

    def forward(self, input: Tensor) -> Tensor:
        if not (self.training and several_processes()):
            return super().forward(input)
        self._check_input_dim(input)  # type: ignore[no-untyped-call]
        count, mean, var = shared_statistics(input)
        if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
            assert self.num_batches_tracked is not None
            self.num_batches_tracked.add_(1)
            share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean, share)
            self.running_var.lerp_(var * (count / (count - 1)), share)
        result: Tensor = _Normalise.apply(input, self.weight, self.bias, count, mean, var, self.eps)
        return result


def shared_statistics(x: Tensor) -> tuple[float, Tensor, Tensor]:
    """Count, mean and variance (C,) of x (B, C, ...) over all processes, alike on each of them."""
    mean, var = torch.batch_norm_update_stats(wide(x.detach()), None, None, 0.0)  # var_mean is much slower
    said = torch.cat([mean, var, mean.new_tensor([x.numel() / x.shape[1]])])
    means, vars_, counts = gathered(said).split([len(mean), len(mean), 1], dim=1)
    shares = counts / counts.sum()
    mean = (shares * means).sum(dim=0)
    return float(counts.sum()), mean, (shares * (vars_ + (means - mean).square())).sum(dim=0)


def gathered(said: Tensor) -> Tensor:
    """What each process says, as rows. Of so few numbers gloo's `all_reduce` takes three times as long."""
    every = [torch.empty_like(said) for _ in range(distributed.get_world_size())]
    distributed.all_gather(every, said)
    return torch.stack(every)


def wide(x: Tensor) -> Tensor:
    """At least float32: sums of bf16 are nothing to go by."""
    return x if x.dtype == torch.float64 else x.float()


class _Normalise(torch.autograd.Function):
    """(x - mean) / sqrt(var + eps) * weight + bias, where mean and var are those of all processes' x."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        count: float,
        mean: Tensor,
        var: Tensor,
        eps: float,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, (var + eps).rsqrt())
        ctx.count = count
        return nn.functional.batch_norm(x, mean, var, weight, bias, training=False, eps=eps)

    @staticmethod
    def backward(ctx: Any, *slopes: Any) -> tuple[Tensor | None, ...]:
        x, weight, mean, scale = ctx.saved_tensors
        x_wide, slope, one = wide(x), wide(slopes[0]), torch.ones_like(scale)
        # Of this process: the gradients of bias and weight, which are averaged later with all others.
        _, weight_slope, bias_slope = torch.ops.aten.native_batch_norm_backward(
            slope, x_wide, one, None, None, mean, scale, True, 0.0, [False, True, True]
        )
        sums = gathered(torch.cat([bias_slope, weight_slope])).sum(dim=0)
        of_mean, of_scale = (sums / ctx.count).chunk(2)
        factor = scale if weight is None else scale * weight
        # (slope - of_mean - (x - mean) * scale * of_scale) * factor, in the passes of torch's own kernels.
        x_slope = nn.functional.batch_norm(slope, of_mean, one, factor, eps=0.0)
        x_slope -= nn.functional.batch_norm(x_wide, mean, one, factor * scale * of_scale, eps=0.0)
        learned = (None, None) if weight is None else (weight_slope, bias_slope)
        return x_slope.to(x.dtype), *learned, None, None, None, None


class Shared1d(SharedBatchNorm, nn.BatchNorm1d):
    pass


class Shared2d(SharedBatchNorm, nn.BatchNorm2d):
    pass


class Shared3d(SharedBatchNorm, nn.BatchNorm3d):
    pass


SHARED = {nn.BatchNorm1d: Shared1d, nn.BatchNorm2d: Shared2d, nn.BatchNorm3d: Shared3d}
PLAIN = {shared: plain for plain, shared in SHARED.items()}


def share_statistics(module: nn.Module) -> None:
    """Make a module's BatchNorm layers share their statistics, in place: they stay the same objects."""
    for name, part in module.named_modules():
        if type(part) in SHARED:
            part.__class__ = SHARED[type(part)]
        elif isinstance(part, _BatchNorm) and not isinstance(part, SharedBatchNorm | nn.SyncBatchNorm):
            raise ConfigError(
                f"{name} is a {type(part).__name__}, a BatchNorm of its own kind, whose statistics several "
                "processes cannot share. Give an encoder with plain BatchNorm, or use one process."
            )


@contextmanager
def statistics_kept(module: nn.Module) -> Iterator[None]:
    """Training passes in which BatchNorm's running statistics stay as they are."""
    tracking = [
        part for part in module.modules() if isinstance(part, _BatchNorm) and part.track_running_stats
    ]
    for part in tracking:
        part.track_running_stats = not part.training  # in eval mode they are what it normalises by
    try:
        yield
    finally:
        for part in tracking:
            part.track_running_stats = True


def separate(module: nn.Module) -> None:
    """Make a module's BatchNorm layers those of this process alone again, in place."""
    for part in module.modules():
        if isinstance(part, SharedBatchNorm | nn.SyncBatchNorm):
            part.__class__ = PLAIN.get(type(part), Separate)  # type: ignore


class Separate(_BatchNorm):
    """Of torch's layer, which does not tell what it was made of."""

    def _check_input_dim(self, input: Tensor) -> None:
        """Any will do: it was fed before."""

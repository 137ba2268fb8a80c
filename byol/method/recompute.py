"""Activation checkpointing: of an encoder's blocks only inputs are kept, for less memory and more time."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from byol.errors import ConfigError


class Recomputed(nn.Module):
    """A block that keeps its input and goes forward once more when its gradient is taken.

    Copied or pickled it is a block of its own class again.
    """

    kind: type[nn.Module]

    def forward(self, *inputs: Any, **more: Any) -> Any:
        if not (self.training and torch.is_grad_enabled()):
            return super().forward(*inputs, **more)

        def contexts() -> tuple[Any, Any]:  # of the first pass and of the second
            return nullcontext(), again(self)

        return checkpoint(super().forward, *inputs, use_reentrant=False, context_fn=contexts, **more)

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced: Any = super().__reduce_ex__(1)  # which later ones do not let be made of another class
        made, (_, *arguments), *state = reduced
        return made, (self.kind, *arguments), *state


@contextmanager
def again(block: nn.Module) -> Iterator[None]:
    """A second pass of the same images, which BatchNorm's running statistics have seen already."""
    counting = [part for part in block.modules() if isinstance(part, _BatchNorm) and part.training]
    momentums = [part.momentum for part in counting]
    for part in counting:
        part.momentum = 0.0  # not without statistics: the second pass has to keep the tensors of the first
    try:
        yield
    finally:
        for part, momentum in zip(counting, momentums, strict=True):
            part.momentum = momentum
            if part.track_running_stats and part.num_batches_tracked is not None:
                part.num_batches_tracked.sub_(1)


def recompute(encoder: nn.Module) -> int:
    """Have a network's blocks recomputed, in place: they stay the same objects. Returns how many there are.

    Blocks are what follows one another in the network and is of one class, with several layers each. Raises
    ConfigError where there are none.
    """
    blocks: list[nn.Module] = []
    inside: set[nn.Module] = set()  # of blocks found before, which are the larger ones
    for part in encoder.modules():
        if part in inside or not isinstance(part, nn.Sequential | nn.ModuleList):
            continue
        for child in part:
            alike = sum(type(other) is type(child) for other in part)
            layers = [m for m in child.children() if next(m.parameters(), None) is not None]
            if len(layers) > 1 and (alike > 1 or len(part) == 1):
                blocks.append(child)
                inside |= {*child.modules()}
    classes = {  # those of an earlier call stay
        kind: type(kind.__name__, (Recomputed, kind), {"__module__": kind.__module__, "kind": kind})
        for kind in {type(block) for block in blocks}
        if not issubclass(kind, Recomputed)
    }
    for block in blocks:
        block.__class__ = classes.get(type(block), type(block))
    if not blocks:
        raise ConfigError(
            "model.recompute is on, but the encoder has no row of blocks of one class, as ResNets and ViTs "
            "have. Leave it out."
        )
    return len(blocks)

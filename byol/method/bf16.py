"""What torch computes wrong in bf16 on a CPU."""

from typing import Any

import torch
from torch import Tensor, nn

from byol.method.byol import evaluating
from byol.method.hidden import run

CONVOLUTIONS = nn.Conv1d | nn.Conv2d | nn.Conv3d


@torch.no_grad()
def wrong_in_bf16(network: nn.Module, images: Any) -> str | None:
    """The name of a layer whose gradient of its weights would be wrong, or None.

    The parts of a kernel that only ever see padding get whatever lies in memory as their gradient, where a
    map is smaller than the stride (oneDNN of torch 2.14, with AVX512; in fp32 it is right).
    """
    found: list[str] = []

    def look(name: str) -> Any:
        def before(layer: Any, inputs: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
            x = inputs[0] if inputs else named["input"]
            sides = x.shape[-len(layer.stride) :]
            padding = layer.padding if isinstance(layer.padding, tuple) else (layer.padding == "same",)
            if any(side < stride for side, stride in zip(sides, layer.stride, strict=True)) and any(padding):
                found.append(name)

        return before

    layers = [(name, part) for name, part in network.named_modules() if isinstance(part, CONVOLUTIONS)]
    hooks = [layer.register_forward_pre_hook(look(name), with_kwargs=True) for name, layer in layers]
    try:
        with evaluating(network):
            run(network, images)
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else None

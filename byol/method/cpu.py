"""What torch computes wrong on a CPU."""

from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from byol.method.byol import evaluating
from byol.method.hidden import run

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
Network = TypeVar("Network", bound=nn.Module)


@torch.no_grad()
def wrong_in_bf16(network: nn.Module, images: Any) -> str | None:
    """The name of a layer whose gradient of its weights would be wrong, or None.

    The parts of a kernel that only see padding get whatever lies in memory as their gradient, where a map is
    small beside the kernel (oneDNN of torch 2.14, with AVX512; in fp32 it is right).
    """
    found: list[str] = []

    def look(name: str) -> Any:
        def before(layer: Any, inputs: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
            if too_small(layer, inputs[0] if inputs else named["input"]):
                found.append(name)

        return before

    layers = [(name, part) for name, part in network.named_modules() if isinstance(part, Convolution)]
    hooks = [layer.register_forward_pre_hook(look(name), with_kwargs=True) for name, layer in layers]
    try:
        with evaluating(network):
            run(network, images)
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else None


def too_small(layer: Convolution, x: Tensor) -> bool:
    """Whether a padded map is smaller than the stride or the padding (the stride alone where each channel is
    convolved by itself), of three dimensions than the stride or the kernel. Of the many that were tried, no
    other was wrong.
    """
    sides = x.shape[-len(layer.stride) :]
    if isinstance(layer.padding, str):
        pads = tuple((kernel - 1) // 2 for kernel in layer.kernel_size) if layer.padding == "same" else (0,)
    else:
        pads = layer.padding
    if not any(pads):
        return False
    least = [layer.stride]
    if isinstance(layer, nn.Conv3d):
        least.append(layer.kernel_size)
    elif layer.groups < layer.in_channels:
        least.append(pads)
    return any(side < size for sizes in least for side, size in zip(sides, sizes, strict=True))


def laid_out(network: Network) -> Network:
    """A network of images in the memory format in which its convolutions are fast: channels last.

    A CPU without AVX512 then writes past its memory in the backward pass of a 1x1 convolution that strides
    over fewer than 8 channels (oneDNN issue 6035; timm's RepVGG and FastViT have one): such a network stays
    as it is.
    """
    strided = any(
        isinstance(layer, nn.Conv2d)
        and layer.in_channels < 8
        and max(layer.kernel_size) == 1 < max(layer.stride)
        and layer.weight.device.type == "cpu"
        for layer in network.modules()
    )
    return network if strided else network.to(memory_format=torch.channels_last)

"""Which of this package's ResNets a set of tensors belongs to: names and shapes tell everything but the padding."""

import re
from collections.abc import Mapping
from typing import Any

from byol.models.build import WIDTHS
from byol.models.resnet import BLOCKS, DEPTHS

Shape = tuple[int, ...]


def resnet_of(shapes: Mapping[str, Shape]) -> tuple[str, dict[str, Any]]:
    """The name and options for `build_encoder` of a ResNet, from the shapes of its tensors by torchvision's names.

    A first convolution of 7x7 is taken for the "imagenet" stem, any other for the "small" one. Raises ValueError with the
    reason when the tensors are those of no such ResNet.
    """
    blocks = [count_blocks(shapes, stage) for stage in range(1, 5)]
    first = convolution(shapes, "conv1.weight")
    stages = [convolution(shapes, f"layer{stage}.0.conv2.weight") for stage in range(1, 5)]
    block = "bottleneck" if "layer1.0.conv3.weight" in shapes else "basic"
    if any(out_channels != in_channels for out_channels, in_channels, *_ in stages):
        raise ValueError("its convolutions are grouped, as a ResNeXt's are")
    if block == "basic" and "layer1.0.downsample.0.weight" in shapes:
        raise ValueError(
            "its first stage has a projection, as the official code's ResNet-18 and -34 have and torchvision's and byol's "
            "have not"
        )
    stem = {} if first[2:] == (7, 7) else {"stem": "small"}
    channels = [first[0], *(shape[0] for shape in stages)]
    for depth, (kind, counts) in DEPTHS.items():
        for width in WIDTHS:
            usual = [64 * width * multiple for multiple in (1, 1, 2, 4, 8)]
            if kind is BLOCKS[block] and blocks == list(counts) and channels == usual:
                return f"resnet{depth}" + (f"x{width}" if width > 1 else ""), stem
    return "resnet", {"block": block, "blocks": blocks, "stem_channels": channels[0], "stage_channels": channels[1:], **stem}


def count_blocks(shapes: Mapping[str, Shape], stage: int) -> int:
    """The blocks of a stage, numbered from 0 without a gap."""
    matches = (re.fullmatch(rf"layer{stage}\.([0-9]{{1,4}})\.conv1\.weight", name) for name in shapes)
    found = sorted(int(match[1]) for match in matches if match)
    if not found or found != list(range(len(found))):
        raise ValueError(f"its stage {stage} has {f'the blocks {found}' if found else 'no block'}")
    return len(found)


def convolution(shapes: Mapping[str, Shape], name: str) -> Shape:
    """The shape (out, in, height, width) of a convolution's weight."""
    if len(shapes.get(name, ())) != 4:
        raise ValueError(f"{name} is {f'of shape {shapes[name]}' if name in shapes else 'missing'}")
    return shapes[name]

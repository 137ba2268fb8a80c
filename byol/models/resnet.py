"""ResNet encoders of the paper (§3.3, Table 1; official networks.py), with torchvision's state-dict names."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch.nn.functional as F
from torch import Tensor, nn

from byol.errors import ConfigError
from byol.method.heads import init_truncated

Stem = Literal["imagenet", "small", "solo-learn"]
Padding = Literal["symmetric", "same"]


def pad_same(x: Tensor, kernel: int, stride: int, value: float = 0.0) -> Tensor:
    """Pad (..., H, W) as TensorFlow's SAME: ceil(size / stride) outputs, the odd pixel right and below."""
    pads: list[int] = []
    for size in (x.shape[-1], x.shape[-2]):  # F.pad counts dimensions from the last
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        pads += [total // 2, total - total // 2]
    return F.pad(x, pads, value=value)


class SameConv2d(nn.Conv2d):
    """A strided convolution with SAME padding, right for every input size."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(pad_same(x, self.kernel_size[0], self.stride[0]))


class SameMaxPool2d(nn.Module):
    """3x3 max-pooling, stride 2, with SAME padding that never wins the maximum."""

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(pad_same(x, 3, 2, value=float("-inf")), 3, 2)


def conv(in_channels: int, out_channels: int, kernel: int, stride: int, padding: Padding) -> nn.Conv2d:
    """A convolution without bias. SAME and symmetric padding differ only where a kernel above 1 strides."""
    if padding == "same" and stride > 1 and kernel > 1:
        return SameConv2d(in_channels, out_channels, kernel, stride, bias=False)
    return nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False)


def shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    """The projection of a shortcut that changes shape; None where the input can be added as it is."""
    if stride == 1 and in_channels == out_channels:
        return None
    projection = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
    return nn.Sequential(projection, nn.BatchNorm2d(out_channels))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut; the first one strides."""

    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int, padding: Padding, last_gamma: float):
        super().__init__()
        self.conv1 = conv(in_channels, channels, 3, stride, padding)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = conv(channels, channels, 3, 1, padding)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = shortcut(in_channels, channels, stride)
        nn.init.constant_(self.bn2.weight, last_gamma)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += x if self.downsample is None else self.downsample(x)
        return F.relu(y, inplace=True)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions around a shortcut; the 3x3 one strides ("v1.5"), as in torchvision."""

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int, padding: Padding, last_gamma: float):
        super().__init__()
        out_channels = channels * self.expansion
        self.conv1 = conv(in_channels, channels, 1, 1, padding)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = conv(channels, channels, 3, stride, padding)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = conv(channels, out_channels, 1, 1, padding)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = shortcut(in_channels, out_channels, stride)
        nn.init.constant_(self.bn3.weight, last_gamma)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        y += x if self.downsample is None else self.downsample(x)
        return F.relu(y, inplace=True)


Block = type[BasicBlock] | type[Bottleneck]
BLOCKS: dict[str, Block] = {"basic": BasicBlock, "bottleneck": Bottleneck}
DEPTHS: dict[int, tuple[Block, tuple[int, int, int, int]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
    200: (Bottleneck, (3, 24, 36, 3)),
}


class ResNet(nn.Module):
    """A residual network: float images (B, channels, H, W) to representations (B, num_features).

    `blocks` counts the blocks of the four stages, `stage_channels` gives the channels of their 3x3
    convolutions; a Bottleneck puts out four times as many. `stem` is "imagenet" (7x7, stride 2, then
    max-pooling), "small" (3x3, stride 1, no pooling; for images up to about 64 pixels), or "solo-learn"
    (small, but padded by 2, as that library's encoders for CIFAR are). `padding` is "symmetric" as in
    torchvision or "same" as in TensorFlow and JAX, which the official checkpoints need. `last_gamma` is
    the first scale of each block's last BatchNorm: 1 gave the paper's results, 0 is what the released
    code does to bottlenecks. Weights start as in the official code: a truncated normal of std
    1/sqrt(fan_in). Raises ConfigError for invalid values.
    """

    def __init__(
        self,
        block: Block,
        blocks: Sequence[int],
        *,
        stem_channels: int = 64,
        stage_channels: Sequence[int] = (64, 128, 256, 512),
        stem: Stem = "imagenet",
        padding: Padding = "symmetric",
        last_gamma: float = 1.0,
        channels: int = 3,
    ) -> None:
        super().__init__()
        for name, value, choices in (("stem", stem, get_args(Stem)), ("padding", padding, get_args(Padding))):
            if value not in choices:
                raise ConfigError(f"{name} is {value!r}; expected {' or '.join(map(repr, choices))}.")
        for name, counts in (("blocks", blocks), ("stage_channels", stage_channels)):
            if not isinstance(counts, list | tuple) or len(counts) != 4 or not all(map(_counts, counts)):
                raise ConfigError(f"{name} is {counts!r}; expected four whole numbers of at least 1.")
        for name, count in (("stem_channels", stem_channels), ("channels", channels)):
            if not _counts(count):
                raise ConfigError(f"{name} is {count!r}; expected a whole number of at least 1.")
        small = stem != "imagenet"
        self.conv1 = conv(channels, stem_channels, 3 if small else 7, 1 if small else 2, padding)
        if stem == "solo-learn":
            self.conv1.padding = (2, 2)
        self.bn1 = nn.BatchNorm2d(stem_channels)
        self.relu = nn.ReLU(inplace=True)
        pooling = SameMaxPool2d() if padding == "same" else nn.MaxPool2d(3, 2, padding=1)
        self.maxpool = nn.Identity() if small else pooling
        stages, in_channels = [], stem_channels
        for count, width, stride in zip(blocks, stage_channels, (1, 2, 2, 2), strict=True):
            layers = [block(in_channels, width, stride, padding, last_gamma)]
            in_channels = width * block.expansion
            layers += [block(in_channels, width, 1, padding, last_gamma) for _ in range(count - 1)]
            stages.append(nn.Sequential(*layers))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.num_features = in_channels
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                init_truncated(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        x = self.avgpool(x)
        return x.flatten(1)


def resnet(depth: int, width: int = 1, **options: Any) -> ResNet:
    """ResNet-18 to -200 with all channels, the stem's too, times `width` (paper Table 1; 1 to 4 there).

    Width 1 has torchvision's state dict without `fc`. So ResNet-18 and -34 have no projection in the
    first stage, where the official code has one. Options are `ResNet`'s.
    """
    if depth not in DEPTHS:
        raise ConfigError(f"There is no ResNet-{depth}; expected one of {', '.join(map(str, DEPTHS))}.")
    if not _counts(width):
        raise ConfigError(f"width is {width!r}; expected a whole number of at least 1.")
    block, blocks = DEPTHS[depth]
    channels = [64 * width * multiple for multiple in (1, 2, 4, 8)]
    return ResNet(block, blocks, stem_channels=64 * width, stage_channels=channels, **options)


def _counts(value: Any) -> bool:
    return isinstance(value, int) and value >= 1

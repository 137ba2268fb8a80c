"""ResNet encoders of the paper (§3.3, Table 1; official networks.py and Haiku's resnet.py), with torchvision's state-dict names."""

from math import sqrt
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from byol.errors import ConfigError

Stem = Literal["imagenet", "small"]
Padding = Literal["symmetric", "same"]


def pad_same(x: Tensor, kernel: int, stride: int, value: float = 0.0) -> Tensor:
    """Pad (..., H, W) as TensorFlow's and JAX's SAME does: ceil(size / stride) outputs, the odd pixel at the right and bottom."""
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
    """A convolution without bias. SAME and symmetric padding differ only where the stride is above 1."""
    if padding == "same" and stride > 1:
        return SameConv2d(in_channels, out_channels, kernel, stride, bias=False)
    return nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut; the first one strides."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, padding: Padding) -> None:
        super().__init__()
        self.conv1 = conv(in_channels, out_channels, 3, stride, padding)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = conv(out_channels, out_channels, 3, 1, padding)
        self.bn2 = self.last_norm = nn.BatchNorm2d(out_channels)
        self.downsample = shortcut(in_channels, out_channels, stride, padding)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += x if self.downsample is None else self.downsample(x)
        return self.relu(y)  # type: ignore[no-any-return]

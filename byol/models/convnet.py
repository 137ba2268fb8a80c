"""The small encoder for CPUs: a plain stack of convolutions."""

import torch
from torch import Tensor, nn

from byol.errors import ConfigError
from byol.models.whitening import HalfWhitening

# By their number: (multiple of the width, kernel, stride) of each convolution. Five are the encoder of files
# up to format 2, which gives its last map alone.
STACKS = {
    4: ((1, 4, 2), (2, 3, 2), (2, 3, 1), (4, 3, 2)),
    5: ((1, 4, 2), (1, 3, 1), (2, 3, 2), (2, 3, 1), (4, 3, 2)),
}


class ConvNet(nn.Module):
    """Four convolutions, each with BatchNorm and ReLU: (B, channels, H, W) to (B, 24 x width).

    They divide the side by 8. The last two maps are averaged in each quarter of the image, so that a
    representation tells roughly where something is, and details beside the whole. Weights start
    Kaiming-normal (He et al. 2015). With `whiten` a fixed layer follows, which is fitted after training.
    """

    def __init__(
        self, width: int = 64, channels: int = 3, whiten: bool = False, convolutions: int = 4
    ) -> None:
        super().__init__()
        if not isinstance(width, int) or width < 1:
            raise ConfigError(f"width is {width!r}; expected a whole number of at least 1.")
        if not isinstance(convolutions, int) or convolutions not in STACKS:
            raise ConfigError(f"convolutions is {convolutions!r}; expected {' or '.join(map(str, STACKS))}.")
        parts = list[nn.Sequential]()
        for multiple, kernel, stride in STACKS[convolutions]:
            parts.append(convolved(channels, multiple * width, kernel, stride))
            channels = multiple * width
        last = parts.pop() if convolutions == 4 else None
        self.layers = nn.Sequential(*(layer for part in parts for layer in part))
        self.last = last
        self.avgpool = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())
        before = STACKS[convolutions][-2][0] * width
        self.num_features = 4 * (channels if self.last is None else before + channels)
        self.whitening = HalfWhitening(self.num_features) if whiten else nn.Identity()
        self.fc = nn.Identity()  # where other networks have a classifier: child -2 is the representation

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers(x)
        pooled = self.avgpool(x)
        if self.last is not None:
            pooled = torch.cat([pooled, self.avgpool(self.last(x))], dim=1)
        features: Tensor = self.fc(self.whitening(pooled))
        return features


def convolved(channels: int, out_channels: int, kernel: int, stride: int) -> nn.Sequential:
    convolution = nn.Conv2d(channels, out_channels, kernel, stride, (kernel - 1) // 2, bias=False)
    nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))

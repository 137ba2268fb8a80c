"""The small encoder for CPUs: a plain stack of 3x3 convolutions."""

from collections.abc import Sequence

from torch import Tensor, nn

from byol.errors import ConfigError

# (multiple of the width, stride) of each convolution of the default stack
STACK = ((1, 1), (2, 2), (2, 1), (4, 2), (4, 1), (8, 2))


class ConvNet(nn.Module):
    """3x3 convolutions, each with BatchNorm and ReLU, then a global average: (B, channels, H, W) to (B, num_features).

    `stages` gives (out_channels, stride) of each convolution. Weights start Kaiming-normal (He et al. 2015). Raises
    ConfigError when there is no stage, or a number is below 1.
    """

    def __init__(self, stages: Sequence[tuple[int, int]], channels: int = 3) -> None:
        super().__init__()
        if not stages or channels < 1 or any(min(stage) < 1 for stage in stages):
            raise ConfigError(
                f"ConvNet got stages={list(stages)} and channels={channels}; expected at least one (out_channels, stride), "
                "and every number at least 1."
            )
        layers: list[nn.Module] = []
        in_channels = channels
        for out_channels, stride in stages:
            convolution = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
            nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
            layers += [convolution, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)]
            in_channels = out_channels
        self.layers = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.num_features = in_channels

    def forward(self, x: Tensor) -> Tensor:
        x = self.avgpool(self.layers(x))
        return x.flatten(1)


def convnet(width: int = 32, channels: int = 3) -> ConvNet:
    """The default stack: six convolutions of `width` to 8 x `width` channels, the image's side divided by 8."""
    return ConvNet([(multiple * width, stride) for multiple, stride in STACK], channels)

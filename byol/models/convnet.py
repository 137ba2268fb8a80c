"""The small encoder for CPUs: a plain stack of convolutions."""

from collections.abc import Sequence

from torch import Tensor, nn

from byol.errors import ConfigError

# (multiple of the width, kernel, stride) of each convolution of the default stack
STACK = ((1, 4, 2), (1, 3, 1), (2, 3, 2), (2, 3, 1), (4, 3, 2))
GRID = 2


class ConvNet(nn.Module):
    """Convolutions, each with BatchNorm and ReLU, averaged on a raster: (B, channels, H, W) to (B,
    num_features).

    `stages` gives (out_channels, kernel, stride) of each convolution. The last map is averaged in
    `grid` x `grid` parts of the image, so that a representation tells roughly where something is:
    num_features is the last out_channels x grid^2. Weights start Kaiming-normal (He et al. 2015).
    Raises ConfigError when there is no stage, or a number is below 1.
    """

    def __init__(self, stages: Sequence[tuple[int, int, int]], channels: int = 3, grid: int = GRID) -> None:
        super().__init__()
        if not stages or min(channels, grid) < 1 or any(min(stage) < 1 for stage in stages):
            raise ConfigError(
                f"ConvNet got stages={list(stages)}, channels={channels} and grid={grid}; expected at least "
                "one (out_channels, kernel, stride), and every number at least 1."
            )
        layers: list[nn.Module] = []
        in_channels = channels
        for out_channels, kernel, stride in stages:
            convolution = nn.Conv2d(
                in_channels, out_channels, kernel, stride, padding=(kernel - 1) // 2, bias=False
            )
            nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
            layers += [convolution, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)]
            in_channels = out_channels
        self.layers = nn.Sequential(*layers)
        self.avgpool = nn.Sequential(nn.AdaptiveAvgPool2d(grid), nn.Flatten())
        self.fc = nn.Identity()  # where other networks have a classifier: child -2 is the representation
        self.num_features = in_channels * grid**2

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.fc(self.avgpool(self.layers(x)))
        return features


def convnet(width: int = 64, channels: int = 3, grid: int = GRID) -> ConvNet:
    """The default stack: five convolutions of `width` to 4 x `width` channels; the side is divided by 8."""
    return ConvNet([(multiple * width, kernel, stride) for multiple, kernel, stride in STACK], channels, grid)

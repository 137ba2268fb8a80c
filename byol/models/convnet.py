"""The small encoder for CPUs: a plain stack of convolutions."""

from torch import Tensor, nn

from byol.errors import ConfigError
from byol.models.whitening import HalfWhitening

# (multiple of the width, kernel, stride) of each convolution
STACK = ((1, 4, 2), (1, 3, 1), (2, 3, 2), (2, 3, 1), (4, 3, 2))


class ConvNet(nn.Module):
    """Five convolutions, each with BatchNorm and ReLU: (B, channels, H, W) to (B, 16 x width).

    They divide the side by 8. The last map is averaged in each quarter of the image, so that a representation
    tells roughly where something is. Weights start Kaiming-normal (He et al. 2015). With `whiten` a fixed
    layer follows, which is fitted after training.
    """

    def __init__(self, width: int = 64, channels: int = 3, whiten: bool = False) -> None:
        super().__init__()
        if not isinstance(width, int) or width < 1:
            raise ConfigError(f"width is {width!r}; expected a whole number of at least 1.")
        self.layers = nn.Sequential()
        for multiple, kernel, stride in STACK:
            out_channels, padding = multiple * width, (kernel - 1) // 2
            convolution = nn.Conv2d(channels, out_channels, kernel, stride, padding, bias=False)
            nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
            self.layers.extend([convolution, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)])
            channels = out_channels
        self.avgpool = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.num_features = 4 * channels
        self.whitening = HalfWhitening(self.num_features) if whiten else nn.Identity()
        self.fc = nn.Identity()  # where other networks have a classifier: child -2 is the representation

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.fc(self.whitening(self.avgpool(self.layers(x))))
        return features

"""The small encoder for CPUs: a plain stack of convolutions."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from byol.errors import ConfigError
from byol.models.whitening import HalfWhitening

# By their number: (multiple of the width, kernel, stride) of each convolution. Five are the encoder of files
# up to format 2.
STACKS = {
    4: ((1, 4, 2), (2, 3, 2), (2, 3, 1), (4, 3, 2)),
    5: ((1, 4, 2), (1, 3, 1), (2, 3, 2), (2, 3, 1), (4, 3, 2)),
}
GRIDS = (1, 3, 2)  # of the maps from the second on
LARGEST = 16  # rows of a grid


class ConvNet(nn.Module):
    """Four convolutions, each with BatchNorm and ReLU: (B, channels, H, W) to (B, 36 x width).

    They divide the side by 8. The last maps are averaged in the cells of a grid each, of as many rows and
    columns as `grids` says, so that a representation tells roughly where something is, and details beside
    the whole. Weights start Kaiming-normal (He et al. 2015). With `whiten` a fixed layer follows, which is
    fitted after training.
    """

    def __init__(
        self,
        width: int = 64,
        channels: int = 3,
        whiten: bool = False,
        convolutions: int = 4,
        grids: Sequence[int] = GRIDS,
    ) -> None:
        super().__init__()
        if not isinstance(width, int) or width < 1:
            raise ConfigError(f"width is {width!r}; expected a whole number of at least 1.")
        if not isinstance(convolutions, int) or convolutions not in STACKS:
            raise ConfigError(f"convolutions is {convolutions!r}; expected {' or '.join(map(str, STACKS))}.")
        if not are_grids(grids, convolutions):
            raise ConfigError(
                f"grids is {grids!r}; expected up to {convolutions} whole numbers from 1 to {LARGEST}, the "
                f"rows and columns that the last maps are averaged in, such as {list(GRIDS)}."
            )
        self.grids = tuple(grids)
        parts, sizes = list[nn.Sequential](), list[int]()
        for multiple, kernel, stride in STACKS[convolutions]:
            parts.append(convolved(channels, multiple * width, kernel, stride))
            channels = multiple * width
            sizes.append(channels)
        last = parts.pop() if convolutions == 4 else None  # of its own, as in files of format 3
        self.layers = Layers(*(layer for part in parts for layer in part))
        self.last = last
        used = sizes[-len(self.grids) :]
        self.num_features = sum(size * grid**2 for size, grid in zip(used, self.grids, strict=True))
        self.whitening = HalfWhitening(self.num_features) if whiten else nn.Identity()
        self.fc = nn.Identity()  # where other networks have a classifier: child -2 is the representation

    def forward(self, x: Tensor) -> Tensor:
        maps = list[Tensor]()
        x = self.layers(x, maps)
        if self.last is not None:
            maps.append(self.last(x))
        used = maps[-len(self.grids) :]
        pooled = torch.cat([cells(x, grid) for x, grid in zip(used, self.grids, strict=True)], dim=1)
        features: Tensor = self.fc(self.whitening(pooled))
        return features


class Layers(nn.Sequential):
    """One after the other: to the last one's map, and all maps behind a ReLU into `maps`, if there is one."""

    def forward(self, x: Tensor, maps: list[Tensor] | None = None) -> Tensor:
        for layer in self:
            x = layer(x)
            if maps is not None and isinstance(layer, nn.ReLU):
                maps.append(x)
        return x


def are_grids(grids: object, most: int) -> bool:
    """Whether these are rows and columns of grids for the last of `most` maps, or fewer of them."""
    if not isinstance(grids, list | tuple) or not 1 <= len(grids) <= most:
        return False
    return all(type(grid) is int and 1 <= grid <= LARGEST for grid in grids)


def cells(x: Tensor, grid: int) -> Tensor:
    """The means of a map (B, C, H, W) in a grid of as many rows and columns: (B, C x grid ** 2)."""
    # ONNX gets cells for one size of map; on Apple's GPUs torch has long refused grids that do not divide it.
    by_products = torch.compiler.is_exporting() or x.device.type == "mps"
    return (products(x, grid, grid) if by_products else adaptive_avg_pool2d(x, grid)).flatten(1)


def products(x: Tensor, rows: int, columns: int) -> Tensor:
    """`adaptive_avg_pool2d` of a map (B, C, H, W) to a grid, as products of matrices."""

    def shares(size: int, cells: int) -> Tensor:
        """Of each pixel in each row or column of cells: (cells, size)."""
        pixels, cell = torch.arange(size, device=x.device), torch.arange(cells, device=x.device)[:, None]
        # Rounded up by adding, not by negating: ONNX divides towards zero.
        inside = (pixels >= cell * size // cells) & (pixels < ((cell + 1) * size + cells - 1) // cells)
        return inside / inside.sum(dim=1, keepdim=True)

    height, width = x.shape[2:]
    return shares(height, rows) @ x @ shares(width, columns).T


def convolved(channels: int, out_channels: int, kernel: int, stride: int) -> nn.Sequential:
    convolution = nn.Conv2d(channels, out_channels, kernel, stride, (kernel - 1) // 2, bias=False)
    nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))

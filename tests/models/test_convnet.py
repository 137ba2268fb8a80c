import re

import pytest
import torch
from torch import nn

from byol.errors import ConfigError
from byol.method.byol import BYOL
from byol.models.convnet import ConvNet, products

FOUR = ((3, 4, 2), (6, 3, 2), (6, 3, 1), (12, 3, 2))  # channels, kernel, stride
FIVE = ((3, 4, 2), (3, 3, 1), (6, 3, 2), (6, 3, 1), (12, 3, 2))


def plain_layers(stack, channels: int) -> nn.Sequential:
    layers = []
    for out, kernel, stride in stack:
        layers += [nn.Conv2d(channels, out, kernel, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
        channels = out
    return nn.Sequential(*layers)


def means(maps: torch.Tensor, grid: int) -> torch.Tensor:
    """The means of a map's cells, row by row, one channel behind the other; its sides are multiples."""
    rows = [torch.cat(row.chunk(grid, dim=3), dim=0) for row in maps.chunk(grid, dim=2)]
    found = torch.cat(rows).mean((2, 3)).reshape(grid * grid, len(maps), -1)
    return found.permute(1, 2, 0).flatten(1)


@pytest.mark.parametrize(
    ("stack", "grids"),
    [(FOUR, (1, 3, 2)), (FOUR, (2, 2)), (FIVE, (2,)), (FOUR, (2, 1, 3, 1))],
    ids=["as it is", "format 3", "format 2", "all maps"],
)
def test_representation_is_that_of_plain_torch_layers(stack, grids):
    torch.manual_seed(0)
    net = ConvNet(width=3, channels=2, convolutions=len(stack), grids=grids)
    plain = plain_layers(stack, 2)
    for ours, theirs in zip(net.parameters(), plain.parameters(), strict=True):
        theirs.data.copy_(ours)
    images = torch.randn(3, 2, 48, 96)
    ends = [3 * (number + 1) for number in range(len(stack))][-len(grids) :]
    expected = torch.cat([means(plain[:e](images), g) for e, g in zip(ends, grids, strict=True)], dim=1)
    torch.testing.assert_close(net(images), expected)
    assert net.num_features == expected.shape[1]


@pytest.mark.parametrize(
    ("height", "width", "grid"), [(6, 9, 3), (8, 8, 3), (3, 5, 2), (1, 1, 2), (2, 3, 3), (4, 5, 1)]
)
def test_cells_by_products_of_matrices_are_those_of_torch(height, width, grid):
    """As they are made in exported graphs, and on devices on which torch has not all of them."""
    x = torch.rand(2, 3, height, width)
    torch.testing.assert_close(products(x, grid, grid), nn.AdaptiveAvgPool2d(grid)(x))


def test_the_small_encoder_has_four_convolutions_and_2304_features():
    net = ConvNet()
    assert sum(isinstance(module, nn.Conv2d) for module in net.modules()) == 4
    assert net.num_features == 2304


@pytest.mark.parametrize("grids", [(), 2, "2", [0], [2.0], [True], [17], [2] * 5, None, {}], ids=str)
def test_grids_that_cannot_be_are_said(grids):
    with pytest.raises(
        ConfigError, match=f"grids is {re.escape(repr(grids))}; expected up to 4 whole numbers"
    ):
        ConvNet(grids=grids)


@pytest.mark.parametrize("convolutions", [3, 6, "4", None, 4.0, {}])
def test_a_number_of_convolutions_that_cannot_be_is_said(convolutions):
    with pytest.raises(ConfigError, match=f"convolutions is {convolutions!r}; expected 4 or 5"):
        ConvNet(convolutions=convolutions)


def test_initial_weights_keep_the_size_of_activations():
    torch.manual_seed(0)
    for m in ConvNet().modules():
        if isinstance(m, nn.Conv2d):  # He et al. 2015, eq. 10: std = sqrt(2 / fan_in)
            assert float(m.weight.detach().std()) == pytest.approx((2 / m.weight[0].numel()) ** 0.5, rel=0.06)


def test_default_hidden_layer_of_byol_is_the_representation():
    net = ConvNet(width=2)
    images = torch.rand(2, 3, 16, 16)
    for layer in (-2, None):
        learner = BYOL(net, 16, layer, projection_hidden_size=8)
        assert not learner.frozen
        torch.testing.assert_close(learner.embed(images), net.eval()(learner.prepare(images)))


@pytest.mark.parametrize("width", [0, -1, 1.5, "8"])
def test_a_width_that_cannot_be_is_said(width):
    with pytest.raises(ConfigError, match=f"width is {width!r}; expected a whole number"):
        ConvNet(width)

import pytest
import torch
from torch import nn

from byol.errors import ConfigError
from byol.method.byol import BYOL
from byol.models.convnet import ConvNet

FOUR = ((3, 4, 2), (6, 3, 2), (6, 3, 1), (12, 3, 2))  # channels, kernel, stride
FIVE = ((3, 4, 2), (3, 3, 1), (6, 3, 2), (6, 3, 1), (12, 3, 2))


def plain_layers(stack, channels: int) -> nn.Sequential:
    layers = []
    for out, kernel, stride in stack:
        layers += [nn.Conv2d(channels, out, kernel, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
        channels = out
    return nn.Sequential(*layers)


def quarters(maps: torch.Tensor) -> torch.Tensor:
    """The means of a map's quarters, one channel behind the other."""
    height, width = maps.shape[2] // 2, maps.shape[3] // 2
    corners = [(y, x) for y in (0, height) for x in (0, width)]
    means = [maps[:, :, y : y + height, x : x + width].mean((2, 3)) for y, x in corners]
    return torch.stack(means, 2).flatten(1)


@pytest.mark.parametrize(("stack", "both"), [(FOUR, True), (FIVE, False)], ids=["four", "five"])
def test_representation_is_that_of_plain_torch_layers(stack, both):
    torch.manual_seed(0)
    net, plain = ConvNet(width=3, channels=2, convolutions=len(stack)), plain_layers(stack, 2)
    for ours, theirs in zip(net.parameters(), plain.parameters(), strict=True):
        theirs.data.copy_(ours)
    images = torch.randn(3, 2, 32, 48)
    expected = quarters(plain(images))  # of a map of 4 x 6, and before it of 8 x 12
    if both:
        expected = torch.cat([quarters(plain[:-3](images)), expected], dim=1)
    torch.testing.assert_close(net(images), expected)
    assert net.num_features == expected.shape[1]


def test_the_small_encoder_has_four_convolutions_and_1536_features():
    net = ConvNet()
    assert sum(isinstance(module, nn.Conv2d) for module in net.modules()) == 4
    assert net.num_features == 1536


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

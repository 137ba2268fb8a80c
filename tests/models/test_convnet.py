import pytest
import torch
from torch import nn

from byol.errors import ConfigError
from byol.method.byol import BYOL
from byol.models.convnet import ConvNet


def test_representation_is_that_of_plain_torch_layers():
    torch.manual_seed(0)
    net, layers, channels = ConvNet(width=3, channels=2), [], 2
    for out, kernel, stride in ((3, 4, 2), (3, 3, 1), (6, 3, 2), (6, 3, 1), (12, 3, 2)):
        layers += [nn.Conv2d(channels, out, kernel, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
        channels = out
    plain = nn.Sequential(*layers)
    for ours, theirs in zip(net.parameters(), plain.parameters(), strict=True):
        theirs.data.copy_(ours)
    images = torch.randn(3, 2, 32, 48)
    maps = plain(images)  # 4 x 6: quarters of 2 x 3
    quarters = [maps[:, :, y : y + 2, x : x + 3].mean((2, 3)) for y in (0, 2) for x in (0, 3)]
    torch.testing.assert_close(net(images), torch.stack(quarters, 2).flatten(1))
    assert net.num_features == 48
    assert ConvNet().num_features == 1024


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

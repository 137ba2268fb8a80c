import pytest
import torch
from torch import nn

from byol.errors import ConfigError
from byol.method.byol import BYOL
from byol.models.convnet import ConvNet, convnet


def test_representation_is_that_of_plain_torch_layers():
    torch.manual_seed(0)
    net = ConvNet([(4, 4, 2), (6, 3, 1)], channels=2)
    plain = nn.Sequential(
        nn.Conv2d(2, 4, 4, 2, 1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3, 1, 1, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
    )
    for ours, theirs in zip(net.parameters(), plain.parameters(), strict=True):
        theirs.data.copy_(ours)
    images = torch.randn(3, 2, 8, 12)
    maps = plain(images)  # 4 x 6: quarters of 2 x 3
    quarters = [maps[:, :, y : y + 2, x : x + 3].mean((2, 3)) for y in (0, 2) for x in (0, 3)]
    torch.testing.assert_close(net(images), torch.stack(quarters, 2).flatten(1))
    assert net.num_features == 24
    whole = ConvNet([(4, 4, 2), (6, 3, 1)], channels=2, grid=1)
    whole.load_state_dict(net.state_dict())
    torch.testing.assert_close(whole(images), plain(images).mean((2, 3)))
    assert whole.num_features == 6


def test_default_stack_is_five_convolutions_that_divide_the_side_by_eight():
    net = convnet(width=8, channels=1)
    convolutions = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    assert [m.in_channels for m in convolutions] == [1, 8, 8, 16, 16]
    assert [m.out_channels for m in convolutions] == [8, 8, 16, 16, 32]
    assert net.layers(torch.zeros(2, 1, 32, 40)).shape == (2, 32, 4, 5)
    assert net(torch.zeros(2, 1, 32, 40)).shape == (2, 128) == (2, net.num_features)
    assert convnet().num_features == 1024


def test_initial_weights_keep_the_size_of_activations():
    torch.manual_seed(0)
    for m in convnet().modules():
        if isinstance(m, nn.Conv2d):  # He et al. 2015, eq. 10: std = sqrt(2 / fan_in)
            assert float(m.weight.detach().std()) == pytest.approx((2 / m.weight[0].numel()) ** 0.5, rel=0.06)


def test_default_hidden_layer_of_byol_is_the_representation():
    net = convnet(width=2)
    images = torch.rand(2, 3, 16, 16)
    for layer in (-2, None):
        learner = BYOL(net, 16, layer, projection_hidden_size=8)
        assert not learner.frozen
        torch.testing.assert_close(learner.embed(images), net.eval()(learner.prepare(images)))


@pytest.mark.parametrize(
    ("stages", "channels"), [([], 3), ([(8, 3, 0)], 3), ([(0, 3, 1)], 3), ([(8, 0, 1)], 3), ([(8, 3, 1)], 0)]
)
def test_what_cannot_be_is_said(stages, channels):
    with pytest.raises(ConfigError, match="expected at least one"):
        ConvNet(stages, channels)

import pytest
import torch
from torch import nn
from torchvision import models

from byol.errors import ConfigError
from byol.method.byol import BYOL
from byol.models.resnet import Bottleneck, ResNet, SameMaxPool2d, pad_same, resnet

# Encoder parameters counted with the official networks.py, and what the paper prints (Table 9, millions).
PAPER = {
    (50, 1): (23_508_032, 24),
    (101, 1): (42_500_160, 43),
    (152, 1): (58_143_808, 58),
    (200, 1): (62_624_832, 63),
    (50, 2): (93_907_072, 94),
    (101, 2): (169_771_136, 170),
    (50, 3): (211_197_120, 211),
    (152, 2): (232_253_568, 232),
    (200, 2): (250_128_512, 250),
    (50, 4): (375_378_176, 375),
    (101, 3): (381_812_928, 382),
    (152, 3): (522_329_280, 522),
}


def without_classifier(net: nn.Module) -> nn.Module:
    net.fc = nn.Identity()
    return net


def randomised(net: nn.Module) -> nn.Module:
    """BatchNorm that does something: every scale, offset and running statistic drawn at random."""
    for name, value in net.state_dict().items():
        if value.ndim == 1:
            value.uniform_(0.5, 1.5) if "bias" not in name and "mean" not in name else value.normal_(std=0.1)
    return net


@pytest.mark.parametrize(("depth", "width"), PAPER)
def test_parameter_count_is_the_papers(depth, width):
    with torch.device("meta"):
        net = resnet(depth, width)
    count = sum(p.numel() for p in net.parameters())
    assert (count, round(count / 1e6)) == PAPER[depth, width]


@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
def test_state_dict_is_torchvisions_without_fc(depth):
    with torch.device("meta"):
        ours = resnet(depth).state_dict()
        theirs = without_classifier(models.get_model(f"resnet{depth}", weights=None)).state_dict()
    assert {name: value.shape for name, value in ours.items()} == {
        name: value.shape for name, value in theirs.items()
    }


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("depth", [18, 50])
def test_features_are_torchvisions(depth, training):
    torch.manual_seed(0)
    theirs = randomised(without_classifier(models.get_model(f"resnet{depth}", weights=None))).train(training)
    ours = resnet(depth).train(training)
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(4, 3, 65, 96)  # odd and uneven sides
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-5, atol=1e-5)


def test_small_stem_is_the_usual_change_of_torchvisions():
    torch.manual_seed(0)
    theirs = without_classifier(models.resnet18(weights=None))
    theirs.conv1, theirs.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    ours = resnet(18, stem="small")
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("depth", [18, 50])
def test_last_gamma_zero_is_torchvisions_zero_init_residual(depth):
    theirs = models.get_model(f"resnet{depth}", weights=None, zero_init_residual=True)
    zero = {name for name, p in theirs.named_parameters() if p.ndim == 1 and not p.any() and "weight" in name}
    ours = resnet(depth, last_gamma=0.0).named_parameters()
    assert {name for name, p in ours if p.ndim == 1 and not p.any() and "weight" in name} == zero


def test_last_gamma_is_one_by_default_as_in_the_paper():
    assert all(
        (p == 1).all() for name, p in resnet(18).named_parameters() if p.ndim == 1 and "weight" in name
    )


@pytest.mark.parametrize("side", [1, 31, 32, 33, 48, 63, 64])
def test_same_padding_gives_ceil_of_size_over_stride(side):
    maps = []
    net = ResNet(
        Bottleneck, (1, 1, 1, 1), stem_channels=8, stage_channels=(2, 2, 2, 2), padding="same"
    ).eval()
    for layer in (net.conv1, net.maxpool, net.layer2, net.layer3, net.layer4):
        layer.register_forward_hook(lambda module, inputs, output: maps.append(tuple(output.shape[2:])))
    net(torch.zeros(1, 3, side, side + 5))
    assert maps == [(-(-side // s), -(-(side + 5) // s)) for s in (2, 4, 8, 16, 32)]


def test_same_padding_puts_the_odd_pixel_right_and_below():
    assert torch.equal(
        pad_same(torch.ones(1, 2, 4), 3, 2), nn.functional.pad(torch.ones(1, 2, 4), (0, 1, 0, 1))
    )


def test_same_max_pooling_never_picks_the_padding():
    assert (SameMaxPool2d()(torch.full((1, 1, 6, 7), -3.0)) == -3).all()


@pytest.mark.parametrize(
    ("depth", "width", "features"), [(18, 1, 512), (34, 2, 1024), (50, 1, 2048), (200, 2, 4096)]
)
def test_num_features_is_the_width_of_the_representation(depth, width, features):
    with torch.device("meta"):
        net = resnet(depth, width, channels=4)
        assert net(torch.empty(2, 4, 64, 64)).shape == (2, features) == (2, net.num_features)


def test_default_hidden_layer_of_byol_is_the_representation():
    torch.manual_seed(0)
    net = ResNet(Bottleneck, (1, 1, 1, 1), stem_channels=8, stage_channels=(2, 2, 2, 4), stem="small").eval()
    images = torch.rand(2, 3, 32, 32)
    for layer in (-2, "avgpool", None):
        learner = BYOL(net, 32, layer, projection_hidden_size=8)
        assert not learner.frozen
        torch.testing.assert_close(learner.embed(images), net(learner.prepare(images)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 51}, "There is no ResNet-51; expected one of 18, 34, 50, 101, 152, 200."),
        ({"width": 0}, "width is 0; expected a whole number of at least 1."),
        ({"channels": 1.5}, "channels is 1.5; expected a whole number of at least 1."),
        ({"stem": "imagnet"}, "stem is 'imagnet'; expected 'imagenet' or 'small' or 'solo-learn'."),
        ({"padding": "valid"}, "padding is 'valid'; expected 'symmetric' or 'same'."),
    ],
)
def test_what_cannot_be_is_said(options, message):
    with pytest.raises(ConfigError) as failure:
        resnet(**{"depth": 18, **options})
    assert str(failure.value) == message


def test_a_resnet_has_four_stages():
    with pytest.raises(ConfigError, match=r"blocks is \(1, 1, 1\); expected four"):
        ResNet(Bottleneck, (1, 1, 1))

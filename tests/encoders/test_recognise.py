"""A ResNet is recognised by the names and shapes of its tensors, whoever built it."""

import pytest
import timm
import torch
from torchvision import models

from byol.encoders.convert import resnet_of
from byol.errors import ConfigError
from byol.models.build import build_encoder, known_encoders


def shapes_of(net: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in net.state_dict().items()}


@pytest.mark.parametrize("name", known_encoders()[1:])
def test_every_named_resnet_is_recognised(name):
    with torch.device("meta"):
        assert resnet_of(shapes_of(build_encoder(name))) == (name, {})
        assert resnet_of(shapes_of(build_encoder(name, stem="small"))) == (name, {"stem": "small"})


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"])
def test_torchvisions_and_timms_resnets_are_recognised(name):
    with torch.device("meta"):
        assert resnet_of(shapes_of(models.get_model(name, weights=None))) == (name, {})
        assert resnet_of(shapes_of(timm.create_model(name))) == (name, {})


UNNAMED = [
    {"block": "bottleneck", "blocks": [1, 2, 1, 1], "stem_channels": 64, "stage_channels": [8, 16, 32, 64]},
    {
        "block": "basic",
        "blocks": [1, 1, 1, 12],
        "stem_channels": 8,
        "stage_channels": [8, 16, 32, 64],
        "stem": "small",
    },
    {
        "block": "bottleneck",
        "blocks": [3, 4, 6, 3],
        "stem_channels": 96,
        "stage_channels": [96, 192, 384, 768],
    },
]


@pytest.mark.parametrize("options", UNNAMED)
def test_resnet_without_a_name_is_built_again_from_what_was_recognised(options):
    with torch.device("meta"):
        net = build_encoder("resnet", **options)
        name, found = resnet_of(shapes_of(net))
        assert (name, found) == ("resnet", options)
        assert shapes_of(build_encoder(name, **found)) == shapes_of(net)


def test_unnamed_resnet_is_resnet50_by_default_and_gives_its_features():
    with torch.device("meta"):
        assert resnet_of(shapes_of(build_encoder("resnet"))) == ("resnet50", {})
    net = build_encoder(
        "resnet", block="basic", blocks=[1, 1, 1, 1], stage_channels=[4, 4, 4, 6], padding="same"
    )
    assert net(torch.rand(2, 3, 64, 64)).shape == (2, 6)


def test_solo_learns_stem_is_padded_by_two():
    net = build_encoder("resnet18", stem="solo-learn")
    theirs = torch.nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=2, bias=False)
    theirs.load_state_dict(net.conv1.state_dict())
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(net.conv1(images), theirs(images))
    assert net.layer1(net.maxpool(net.conv1(images))).shape[2:] == (34, 34)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"block": "wide"}, "block is 'wide'; expected 'basic' or 'bottleneck'"),
        ({"blocks": 5}, "blocks is 5; expected four"),
        ({"blocks": [1, 2]}, r"blocks is \[1, 2\]; expected four"),
        ({"stage_channels": "wide"}, "stage_channels is 'wide'; expected four"),
        ({"blocks": [1, 1, 1, 0]}, "whole numbers of at least 1"),
        ({"depth": 50}, "no option 'depth'"),
    ],
)
def test_impossible_resnet_is_refused_with_the_option(options, says):
    with pytest.raises(ConfigError, match=says):
        build_encoder("resnet", **options)


def changed(**changes: tuple[int, ...] | None) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        shapes = {**shapes_of(build_encoder("resnet18")), **changes}
    return {name: shape for name, shape in shapes.items() if shape is not None}


@pytest.mark.parametrize(
    ("shapes", "says"),
    [({}, "conv1.weight is missing"),
     (changed(**{"conv1.weight": None}), "conv1.weight is missing"),
     (changed(**{"layer4.0.conv2.weight": (512,)}), r"layer4.0.conv2.weight is of shape \(512,\)"),
     (changed(**{"layer1.0.downsample.0.weight": (64, 64, 1, 1)}), "first stage has a projection"),
     (shapes_of(models.resnext50_32x4d()), "its convolutions are grouped")],
)  # fmt: skip
def test_what_is_not_such_a_resnet_is_told_why(shapes, says):
    with pytest.raises(ValueError, match=says):
        resnet_of(shapes)

import socket
import subprocess
import sys

import pytest
import timm
import torch
from torch import nn
from torchvision import models

from byol.errors import ConfigError
from byol.method.byol import BYOL
from byol.models.build import build_encoder, is_own_code, known_encoders
from byol.models.convnet import ConvNet
from byol.models.resnet import ResNet

OWN_CODE = """
import torch.nn as nn
from torch.nn import Linear

def small(hidden=8, channels=3, image_size=None):
    net = nn.Sequential(nn.Flatten(), nn.Linear(channels * image_size[0] * image_size[1], hidden))
    return net

def anything(**options):
    return nn.Linear(len(options), 1)

def number():
    return 7

def broken(channels):
    return {}["weights"]

answer = 42
"""


@pytest.fixture
def own_code(tmp_path, monkeypatch) -> str:
    (tmp_path / "own_encoders.py").write_text(OWN_CODE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_encoders", raising=False)
    return "own_encoders"


@pytest.fixture
def no_network(monkeypatch) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError(f"a connection to {arguments[1:]}")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def same_seed(build) -> nn.Module:
    torch.manual_seed(0)
    return build().eval()


@pytest.mark.parametrize(
    "name", ["os:system", "my.nets:build", "timmy:resnet50", ":", "hf-hub:timm/resnet18"]
)
def test_what_would_import_code_is_told_from_names_of_networks(name):
    assert is_own_code(name)
    assert not any(
        map(is_own_code, [*known_encoders(), "resnet", "torchvision:resnet18", "timm:vit_tiny", ""])
    )


def test_every_known_encoder_is_built():
    assert known_encoders()[:6] == [
        "convnet",
        "resnet18",
        "resnet18x2",
        "resnet18x3",
        "resnet18x4",
        "resnet34",
    ]
    assert len(known_encoders()) == 1 + 6 * 4
    for name in known_encoders():
        with torch.device("meta"):
            net = build_encoder(name, channels=2)
        assert isinstance(net, ConvNet if name == "convnet" else ResNet)


def test_x_is_the_width_of_the_paper():
    with torch.device("meta"):
        assert sum(p.numel() for p in build_encoder("resnet50x2").parameters()) == 93_907_072


def test_options_reach_the_encoder():
    net = build_encoder("resnet18", stem="small", padding="same", last_gamma=0.0, channels=1)
    assert net.conv1.weight.shape == (64, 1, 3, 3)
    assert isinstance(net.maxpool, nn.Identity)
    assert type(net.layer2[0].conv1).__name__ == "SameConv2d"
    assert not net.layer1[0].bn2.weight.any()
    assert build_encoder("convnet", width=4).num_features == 144


# One of each kind of classifier: Linear, in a Sequential, behind a norm, a convolution, named heads and head.
@pytest.mark.parametrize(
    ("name", "side", "features"),
    [
        ("resnet18", 32, 512),
        ("mobilenet_v3_small", 32, 1024),
        ("convnext_tiny", 32, 768),
        ("squeezenet1_1", 32, 512),
        ("densenet121", 32, 1024),
        ("regnet_x_400mf", 32, 400),
        ("googlenet", 64, 1024),
        ("vit_b_16", 32, 768),
        ("swin_t", 32, 768),
    ],
)
def test_torchvision_models_give_what_their_classifier_was_fed(no_network, name, side, features):
    net = build_encoder(f"torchvision:{name}", channels=2, image_size=side)
    assert net(torch.rand(2, 2, side, side)).shape == (2, features)
    assert not any(1000 in p.shape for p in net.parameters())


def test_torchvision_features_are_torchvisions():
    ours = same_seed(lambda: build_encoder("torchvision:resnet18", image_size=64))
    theirs = same_seed(lambda: models.resnet18(weights=None))
    theirs.fc = nn.Identity()
    images = torch.rand(2, 3, 64, 64)
    assert torch.equal(ours(images), theirs(images))


def test_torchvision_models_take_their_own_options():
    net = build_encoder("torchvision:resnet18", zero_init_residual=True)
    assert not net.layer1[0].bn2.weight.any()


@pytest.mark.parametrize(
    ("name", "side", "features"),
    [("vit_tiny_patch16_224", 32, 192), ("vit_tiny_patch16_224", (64, 32), 192), ("resnet10t", 32, 512)],
)
def test_timm_models_take_the_image_size_where_they_need_one(no_network, name, side, features):
    net = build_encoder(f"timm:{name}", channels=2, image_size=side)
    height, width = (side, side) if isinstance(side, int) else side
    assert net(torch.rand(2, 2, height, width)).shape == (2, features)


def test_timm_features_are_timms():
    ours = same_seed(lambda: build_encoder("timm:test_vit", image_size=64))
    theirs = same_seed(lambda: timm.create_model("test_vit", num_classes=0, img_size=64))
    images = torch.rand(2, 3, 64, 64)
    assert torch.equal(ours(images), theirs(images))


def test_timm_models_take_their_own_options():
    net = build_encoder("timm:test_vit", image_size=64, global_pool="")
    assert net(torch.rand(2, 3, 64, 64)).ndim == 3  # tokens, which BYOL pools
    assert BYOL(net, 64, None, projection_hidden_size=8).embed(torch.rand(2, 3, 64, 64)).shape == (
        2,
        net.num_features,
    )


def test_own_functions_get_the_options_and_the_arguments_they_name(own_code):
    net = build_encoder(f"{own_code}:small", channels=1, image_size=(4, 6), hidden=5)
    assert net(torch.rand(2, 1, 4, 6)).shape == (2, 5)
    assert build_encoder(f"{own_code}:anything", channels=1, a=1, b=2).in_features == 2


def test_what_own_code_raises_is_told_as_its_own_failure(own_code, tmp_path):
    with pytest.raises(
        ConfigError,
        match=r"function own_encoders:broken failed: KeyError: 'weights' \(.*own_encoders.py:\d+\)",
    ):
        build_encoder(f"{own_code}:broken")
    (tmp_path / "own_wreck.py").write_text("1 / 0\n")
    with pytest.raises(ConfigError, match="own_wreck cannot be imported: ZeroDivisionError"):
        build_encoder("own_wreck:net")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("resnet50x7", "Did you mean 'resnet50"),
        ("resnet5", "Did you mean 'resnet5"),
        ("ResNet50", "Did you mean 'resnet50"),
        ("", "There is no encoder ''"),
        ("torchvision", "torchvision:NAME"),
        ("timm:", "timm has no image classification model ''"),
        ("timm:vit_tiny_patch16_22", "Did you mean 'vit_tiny_patch16_224'"),
        ("timm:vit_tiny_patch16_224.augreg_in21k", "without a weights tag"),
        ("timm:hf-hub:timm/resnet18.a1_in1k", "timm has no image classification model 'hf-hub"),
        ("torchvision:", "torchvision has no image classification model ''"),
        ("torchvision:resnet5", "Did you mean 'resnet50'"),
        ("torchvision:fasterrcnn_resnet50_fpn", "no image classification model"),
        ("nopkg.mod:fn", "No module named 'nopkg'"),
        ("os:getcwd", "returned a str; expected a torch.nn.Module"),
        ("os:getcwdd", "Did you mean 'getcwd'"),
        ("os:", "expected package.module:function"),
        (":fn", "expected package.module:function"),
        ("..os:fn", "expected package.module:function"),
        ("https://example.org/net", "expected package.module:function"),
        ("own_encoders:answer", "own_encoders has no function 'answer'"),
        ("own_encoders:number", "returned a int"),
        ("torch.nn:Linear", "missing a required argument: 'in_features'"),
    ],
)
def test_a_name_that_means_nothing_gets_a_sentence(own_code, no_network, name, says):
    with pytest.raises(ConfigError) as failure:
        build_encoder(name)
    assert says in str(failure.value)
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("resnet18", {"width": 2}, "has no option 'width'. Its options: stem, padding, last_gamma."),
        ("resnet18", {"last_gama": 2}, "Did you mean 'last_gamma'?"),
        ("resnet18", {"stem": "tiny"}, "stem is 'tiny'"),
        (
            "convnet",
            {"stem": "small"},
            "has no option 'stem'. Its options: width, whiten, convolutions, grids.",
        ),
        ("convnet", {"width": 0}, "at least 1"),
        ("resnet18", {"channels": 0}, "channels is 0"),
        ("torchvision:resnet18", {"zero_init": True}, "Did you mean 'zero_init_residual'?"),
        ("torchvision:vit_b_16", {"image_size": (32, 64)}, "needs square images"),
        ("torchvision:vit_b_16", {"image_size": 33}, "cannot be built with image_size=33"),
        ("torchvision:resnet18", {"pretrained": True}, "fresh weights, and pretrained would load others"),
        ("timm:test_vit", {"drop_path": 0.1}, "Did you mean 'drop_path_rate'"),
        ("timm:poolformer_s12", {"layers": [1, 1, 1, 1]}, "Did you mean 'norm_layers'?"),  # and not 'kwargs'
        ("timm:resnet10t", {"stem": "small"}, "cannot be built with stem='small'"),
        ("timm:resnet10t", {"pretrained": True}, "fresh weights, and pretrained would load others"),
        ("own_encoders:small", {"hiden": 3}, "Did you mean 'hidden'?"),
    ],
)
def test_an_option_that_cannot_be_gets_a_sentence(own_code, no_network, name, options, says):
    with pytest.raises(ConfigError) as failure:
        build_encoder(name, **options)
    assert says in str(failure.value)


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_a_missing_library_is_named_with_its_remedy(monkeypatch, library):
    monkeypatch.setitem(sys.modules, library, None)  # Python's own way to make an import fail
    with pytest.raises(ConfigError, match=rf"{library} is not installed: pip install 'byol\[models\]'"):
        build_encoder(f"{library}:resnet18")


def test_own_encoders_load_no_library():
    code = "import sys; from byol.models.build import build_encoder; build_encoder('convnet', width=1); "
    code += "sys.exit(sum(name in sys.modules for name in ('torchvision', 'timm')))"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)

"""Without hidden_layer the representation is what the network itself says comes before its classifier."""

import logging
from collections import OrderedDict

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from byol.method.probe import Probe, probe


def noise(size: int, channels: int = 3) -> Tensor:
    return torch.rand((2, channels, size, size), generator=torch.Generator().manual_seed(0))


def found(net: nn.Module, images: Tensor, hidden_layer: str | int | None = None) -> Probe:
    return probe(net, hidden_layer, images)


def representation(net: nn.Module, images: Tensor, hidden_layer: str | int | None = None) -> Tensor:
    with torch.no_grad():
        return found(net, images, hidden_layer).encoder.eval()(images)


def fed_to(net: nn.Module, layer: str, images: Tensor) -> Tensor:
    """What a layer is fed in evaluation, its places averaged."""
    seen = []
    handle = net.get_submodule(layer).register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        net.eval()(images)
    handle.remove()
    return seen[-1].flatten(2).mean(2) if seen[-1].ndim > 2 else seen[-1]


@pytest.mark.parametrize(
    ("name", "size", "options"),
    [
        ("test_resnet", 32, {}),
        ("test_vit", 32, {"img_size": 32}),
        ("deit_tiny_distilled_patch16_224", 32, {"img_size": 32, "depth": 1}),  # child -2 is a classifier
        ("swiftformer_xs", 64, {}),  # here too
        ("efficientvit_m0", 224, {}),  # a norm in front of the Linear, in the classifier
        ("resnetv2_18", 64, {}),  # classifies with a convolution
        ("mobilenetv3_small_050", 64, {}),
    ],
)
def test_timms_networks_give_their_own_pre_logits(name, size, options):
    torch.manual_seed(0)
    net = timm.create_model(name, num_classes=5, **options).eval()
    with torch.no_grad():
        expected = net.forward_head(net.forward_features(noise(size)), pre_logits=True)
    torch.testing.assert_close(representation(net, noise(size)), expected, rtol=0, atol=0)


def test_timms_networks_without_a_classifier_give_their_output():
    net = timm.create_model("test_resnet", num_classes=0).eval()
    torch.testing.assert_close(representation(net, noise(32)), net(noise(32)).detach(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "size", "classifier"),
    [
        ("resnet18", 32, "fc"),
        ("densenet121", 32, "classifier"),  # child -2 gives maps before the last ReLU
        ("mobilenet_v3_small", 32, "classifier.3"),
        ("squeezenet1_1", 64, "classifier.1"),  # a convolution
        ("shufflenet_v2_x0_5", 32, "fc"),
        ("googlenet", 64, "fc"),  # in training it has three outputs
    ],
)
def test_torchvisions_networks_give_what_their_classifier_is_fed(name, size, classifier, caplog):
    torch.manual_seed(0)
    options = {"init_weights": True, "aux_logits": True} if name == "googlenet" else {}
    net = getattr(torchvision.models, name)(num_classes=7, **options)
    with torch.no_grad():
        [p.normal_() for p in net.parameters() if p.ndim == 1]  # so that a norm left out would show
    expected = fed_to(net, classifier, noise(size))
    torch.testing.assert_close(representation(net, noise(size)), expected, rtol=0, atol=1e-6)
    assert "looks like a classifier" not in caplog.text


class Monai(nn.Module):
    """Registers its activation behind the classifier, as MONAI's EfficientNet does."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem, self._fc, self._swish = nn.Conv2d(3, 8, 3), nn.Linear(8, 5), nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self._fc(self._swish(self._conv_stem(x)).mean((2, 3)))


class HuggingFace(nn.Module):
    """Returns a mapping, as transformers' ...ForImageClassification do; the classifier follows a norm of
    tokens.
    """

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.classifier = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 5)
        self.cls_token, self.layernorm = nn.Parameter(torch.randn(1, 1, 8)), nn.LayerNorm(8)

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        tokens = self.patches(pixel_values).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], dim=1)
        return {"logits": self.classifier(self.layernorm(tokens + tokens.mean(1, True))[:, 0])}


class Distilled(Monai):
    """Averages two classifiers."""

    def __init__(self) -> None:
        super().__init__()
        del self._swish
        self.swish, self.head, self.head_dist = nn.SiLU(), nn.Linear(8, 5), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.swish(self._conv_stem(x)).mean((2, 3))
        return (self.head(x) + self.head_dist(x)) / 2


class Softmax(Monai):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).softmax(1)


@pytest.mark.parametrize(("build", "classifier"), [(Monai, "_fc"), (HuggingFace, "classifier")])
def test_other_libraries_networks_give_what_their_classifier_is_fed(build, classifier, caplog):
    net = build()
    torch.testing.assert_close(representation(net, noise(16)), fed_to(net, classifier, noise(16)))
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("net", "hidden_layer", "named", "width"),
    [
        (Monai(), -2, "'_fc'", 5),
        (Distilled(), -2, "'head'", 5),
        (Distilled(), None, "'head_dist'", 5),  # neither is what the network gives
        (Softmax(), None, "'_fc'", 5),
        (nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(1568, 5)), None, "'2'", 1568),
    ],
    ids=["child -2", "beside the last", "average", "softmax", "without a name"],
)
def test_what_looks_like_a_classifier_is_named_in_a_warning(net, hidden_layer, named, width, caplog):
    with caplog.at_level(logging.WARNING, logger="byol"):
        assert found(net, noise(16), hidden_layer).features == width
    assert f"{named} of {type(net).__name__} looks like a classifier" in caplog.text
    assert "'input of " in caplog.text


def test_a_network_without_classifier_gives_its_output_and_nothing_is_said(caplog):
    body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    mlp = nn.Sequential(nn.Linear(7, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU())
    vgg = nn.Sequential(
        OrderedDict(features=body, classifier=nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Identity()))
    )
    for net, x in (
        (body, noise(16)),
        (mlp, torch.rand(2, 7)),
        (nn.Linear(7, 6), torch.rand(2, 7)),
        (vgg, noise(16)),
    ):
        torch.testing.assert_close(representation(net, x), net.eval()(x).detach())
    assert caplog.text == ""


def test_output_is_taken_when_it_is_chosen_and_nothing_is_said(caplog):
    net = torchvision.models.resnet18(num_classes=7).eval()
    torch.testing.assert_close(representation(net, noise(32), "output"), net(noise(32)).detach())
    assert caplog.text == ""

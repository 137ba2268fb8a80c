import copy
from collections import OrderedDict, namedtuple

import pytest
import timm
import torch
import torchvision
from torch import nn

from byol.errors import ConfigError
from byol.method.byol import BYOL
from byol.method.hidden import HiddenLayer, layer_name, run
from byol.method.probe import probe

IMAGES = torch.rand((4, 3, 32, 32), generator=torch.Generator().manual_seed(0))


def small_net() -> nn.Sequential:
    layers = {"conv": nn.Conv2d(3, 8, 3), "norm": nn.BatchNorm2d(8), "relu": nn.ReLU(inplace=True)}
    layers |= {"pool": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten(), "fc": nn.Linear(8, 5)}
    return nn.Sequential(OrderedDict(layers))


class Returns(nn.Module):
    """A network that wraps its features (B, 6) the way a function says."""

    def __init__(self, wrap) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 6)
        self.wrap = wrap

    def forward(self, x):
        return self.wrap(self.linear(x))


class Reuses(nn.Module):
    """Runs one layer three times and has one that it never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Linear(4, 4)
        self.spare = nn.Linear(4, 4)

    def forward(self, x):
        return self.shared(self.shared(self.shared(x)))


def representation(net: nn.Module, hidden_layer, images: torch.Tensor = IMAGES) -> torch.Tensor:
    encoder = probe(net, hidden_layer, images).encoder.eval()
    with torch.no_grad():
        return encoder(images)


def before_its_head(net: nn.Module, head: str) -> torch.Tensor:
    """What the network itself feeds its classifier."""
    fed = []
    handle = net.get_submodule(head).register_forward_pre_hook(lambda module, inputs: fed.append(inputs[0]))
    with torch.no_grad():
        net.eval()(IMAGES)
    handle.remove()
    return fed[0]


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("pool", "pool"),
        (0, "conv"),
        (-2, "flat"),
        (-1, "output"),  # as in byol-pytorch
        (5, "fc"),
        ("output", "output"),
        ("input of -1", "input of fc"),
    ],
)
def test_layer_is_found_by_name_or_index(given, name):
    assert layer_name(small_net(), given) == name


@pytest.mark.parametrize("given", ["flat", 4, -2])
def test_name_index_and_negative_index_give_the_same_representation(given):
    torch.manual_seed(0)
    net = small_net()
    expected = net.eval()[:-1](IMAGES)
    torch.testing.assert_close(representation(net, given), expected.detach(), rtol=0, atol=0)


def test_output_is_the_networks_own():
    net = small_net()
    torch.testing.assert_close(representation(net, "output"), net.eval()(IMAGES).detach(), rtol=0, atol=0)


def test_nested_layer_is_found_by_its_dotted_name():
    net = torchvision.models.resnet18()
    assert representation(net, "layer2.0.conv1").shape == (4, 128)


@pytest.mark.parametrize("layer", ["conv", "norm", "pool"])
def test_feature_maps_are_averaged_over_their_places(layer):
    torch.manual_seed(0)
    net = small_net()
    index = ["conv", "norm", "relu", "pool"].index(layer) + 1
    expected = net.eval()[:index](IMAGES).mean(dim=(2, 3))
    torch.testing.assert_close(representation(net, layer), expected.detach(), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("layer", "channels"), [("features.1.0.mlp.0", 32), ("features.2", 16)])
def test_layers_inside_a_swin_network_give_their_channels(layer, channels):
    assert representation(swin_of_torchvision(), layer).shape == (4, channels)


@pytest.mark.parametrize("shape", [(8, 8), (8, 13), (13, 8), (1, 1)], ids=str)
def test_map_with_as_many_channels_as_rows_is_still_a_map(shape):
    net, images = nn.Conv2d(3, 8, 3, padding=1), torch.rand(2, 3, *shape)
    torch.testing.assert_close(
        representation(net, None, images), net(images).mean(dim=(2, 3)).detach(), rtol=0, atol=1e-6
    )


def test_oblong_map_of_a_swin_network_is_pooled_as_its_own_head_would():
    net, images = (
        swin_of_torchvision(),
        torch.rand((2, 3, 32, 64), generator=torch.Generator().manual_seed(0)),
    )
    found = representation(net, "norm", images)
    net.head = nn.Identity()
    torch.testing.assert_close(found, net.eval()(images).detach(), rtol=0, atol=1e-5)


def test_maps_of_videos_and_signals_are_averaged_over_their_places():
    video = nn.Sequential(nn.Conv3d(3, 6, 3), nn.ReLU())
    assert representation(video, None, torch.rand(2, 3, 5, 8, 8)).shape == (2, 6)
    signal = nn.Sequential(nn.Conv1d(2, 6, 3), nn.ReLU())
    x = torch.rand(2, 2, 20)
    torch.testing.assert_close(
        representation(signal, None, x), signal(x).mean(dim=2).detach(), rtol=0, atol=1e-6
    )


def vit_of_torchvision() -> nn.Module:
    net = torchvision.models.VisionTransformer(
        32, 8, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=16, num_classes=5
    )
    nn.init.normal_(net.class_token)
    return net


def swin_of_torchvision() -> nn.Module:
    return torchvision.models.SwinTransformer([4, 4], 8, [1, 1], [2, 2], [2, 2], num_classes=5)


@pytest.mark.parametrize(
    ("build", "layer", "head"),
    [
        (torchvision.models.resnet18, "layer4", "fc"),
        (vit_of_torchvision, "encoder", "heads"),
        (swin_of_torchvision, "norm", "head"),
        (lambda: timm.create_model("test_vit", img_size=32, num_classes=5), "norm", "head"),
        (
            lambda: timm.create_model(
                "test_vit", img_size=32, num_classes=5, global_pool="avg", fc_norm=False
            ),
            "norm",
            "head",
        ),
        (lambda: timm.create_model("test_vit2", img_size=32, num_classes=5, fc_norm=False), "norm", "head"),
        (lambda: timm.create_model("test_resnet", num_classes=5), "layer4", "fc"),
    ],
    ids=["resnet", "vit", "swin", "timm vit token", "timm vit average", "timm vit registers", "timm resnet"],
)
def test_maps_and_tokens_are_pooled_as_the_networks_own_head_would(build, layer, head):
    torch.manual_seed(0)
    net = build()
    torch.testing.assert_close(
        representation(net, layer), before_its_head(net, head).flatten(1), rtol=0, atol=1e-5
    )


class CnnLstm(nn.Module):
    """(B, 2, 50) signals to (B, 50, 24): the channels come last, although the network begins with a
    convolution.
    """

    def __init__(self, **options) -> None:
        super().__init__()
        self.conv, self.lstm = nn.Conv1d(2, 8, 3, padding=1), nn.LSTM(8, 12, batch_first=True, **options)

    def forward(self, x):
        return self.lstm(self.conv(x).transpose(1, 2))[0]


class RootMeanSquare(nn.Module):
    """A norm of the last axis that torch does not know."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x):
        return self.weight * x * x.square().mean(-1, keepdim=True).add(1e-6).rsqrt()


class ChannelsLast(nn.Module):
    """(B, H, W, C) maps behind a norm."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), norm

    def forward(self, x):
        return self.norm(self.conv(x).permute(0, 2, 3, 1))


class Clip(nn.Module):
    """The image half of CLIP in transformers, as far as its tokens go."""

    def __init__(self) -> None:
        super().__init__()
        self.class_embedding, self.norm = nn.Parameter(torch.randn(8)), nn.LayerNorm(8)
        self.patch_embedding = nn.Conv2d(3, 8, 8, 8, bias=False)

    def forward(self, x):
        patches = self.patch_embedding(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_embedding.expand(len(x), 1, -1), patches], dim=1)
        return self.norm(tokens + patches.mean(1, keepdim=True))


@pytest.mark.parametrize(
    ("net", "x", "axes"),
    [
        (CnnLstm(num_layers=1), torch.rand(2, 2, 50), 1),
        (CnnLstm(bidirectional=True), torch.rand(2, 2, 50), 1),
        (CnnLstm().conv, torch.rand(2, 2, 50), 2),
        (ChannelsLast(nn.RMSNorm(8)), IMAGES, (1, 2)),
        (ChannelsLast(RootMeanSquare(8)), IMAGES, (1, 2)),
        (ChannelsLast(nn.LayerNorm(8)), IMAGES[:, :, :8, :8], (1, 2)),  # as many channels as rows and columns
        (nn.Sequential(nn.Conv2d(3, 8, 3), timm.layers.LayerNorm2d(8)), IMAGES, (2, 3)),
        (nn.Sequential(nn.Conv2d(3, 8, 3), timm.layers.RmsNorm2d(8), nn.ReLU()), IMAGES, (2, 3)),
    ],
    ids=["lstm", "both ways", "signals", "rms", "own rms", "cube", "norm of maps", "rms of maps"],
)
def test_places_are_averaged_and_channels_are_not(net, x, axes):
    """Whatever the order of the axes: the last layer with channels tells it."""
    with torch.no_grad():
        expected = net.eval()(x).mean(axes)
    torch.testing.assert_close(representation(net, "output", x), expected, rtol=0, atol=1e-6)


def test_videos_of_a_swin_network_are_pooled_as_its_own_head_would():
    net = torchvision.models.video.SwinTransformer3d(
        [2, 4, 4], 8, [1, 1], [2, 2], [2, 4, 4], num_classes=5
    ).eval()
    x = torch.rand((2, 3, 4, 32, 32), generator=torch.Generator().manual_seed(0))
    found = representation(net, "norm", x)
    net.head = nn.Identity()
    torch.testing.assert_close(found, net(x).detach(), rtol=0, atol=1e-5)


def test_the_class_token_of_clip_is_taken():
    net = Clip()
    torch.testing.assert_close(representation(net, None), net(IMAGES)[:, 0].detach(), rtol=0, atol=1e-6)


def test_tokens_without_class_token_are_averaged():
    net = nn.Sequential(nn.Embedding(11, 6), nn.LayerNorm(6))
    words = torch.arange(10).view(2, 5)
    torch.testing.assert_close(
        representation(net, None, words), net(words).mean(dim=1).detach(), rtol=0, atol=1e-6
    )


def test_network_is_left_bit_for_bit_as_it_was():
    net = torchvision.models.resnet18()
    net.layer1.eval()
    net.bn1.requires_grad_(False)
    net(IMAGES).sum().backward()
    state = {name: value.clone() for name, value in net.state_dict().items()}
    grads = {name: None if p.grad is None else p.grad.clone() for name, p in net.named_parameters()}
    modes = {name: module.training for name, module in net.named_modules()}
    trainable = {name: p.requires_grad for name, p in net.named_parameters()}
    random_state = torch.get_rng_state()

    for layer in ("avgpool", "layer2.0.bn2", None):
        probe(net, layer, IMAGES)

    assert torch.equal(torch.get_rng_state(), random_state)
    assert {name: module.training for name, module in net.named_modules()} == modes
    assert {name: p.requires_grad for name, p in net.named_parameters()} == trainable
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    for name, p in net.named_parameters():
        assert (p.grad is None) == (grads[name] is None)
        assert p.grad is None or torch.equal(p.grad, grads[name])
    assert not any(module._forward_hooks for module in net.modules())


def test_random_state_is_left_by_a_network_with_dropout():
    net = nn.Sequential(nn.Dropout(), nn.Linear(4, 4))
    random_state = torch.get_rng_state()
    probe(net, None, torch.zeros(2, 4))
    assert torch.equal(torch.get_rng_state(), random_state)


@pytest.mark.parametrize(
    "layer", ["conv1", "layer1.0.bn2", "layer2.0.bn2", "layer2.0.conv1", "layer3", "avgpool", "fc", None]
)
def test_unreached_parameters_are_exactly_those_that_training_gives_no_gradient(layer):
    """Also where a later layer writes into the hidden layer's output: a residual block adds its shortcut in
    place.
    """
    net = torchvision.models.resnet18()
    found = probe(net, layer, IMAGES)
    found.encoder(IMAGES).sum().backward()
    assert set(found.unreached) == {name for name, p in net.named_parameters() if p.grad is None}


def test_layers_behind_the_hidden_layer_are_not_run():
    net = small_net()
    probe(net, "conv", IMAGES).encoder.train()(IMAGES)
    assert net.norm.num_batches_tracked == 0


@pytest.mark.parametrize("layer", ["flat", "input of fc", "output"])
def test_what_a_layer_is_fed_is_what_the_layer_before_gives(layer):
    net = small_net().eval()
    expected = net[:-1](IMAGES) if layer != "output" else net(IMAGES)
    torch.testing.assert_close(representation(net, layer), expected.detach(), rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_pass_that_stops_at_the_hidden_layer_compiles_into_one_graph():
    """Also where the layer runs several times; afterwards the network is as it was."""
    for net, layer, x in (
        (small_net(), "pool", IMAGES),
        (small_net(), None, IMAGES),
        (Reuses(), "shared", torch.rand(2, 4)),
    ):
        encoder = probe(net, layer, x).encoder
        twin = copy.deepcopy(encoder)
        compiled = torch.compile(encoder, fullgraph=True, backend="eager")
        for _ in range(2):
            torch.testing.assert_close(compiled(x), twin(x), rtol=0, atol=0)
        assert all(
            torch.equal(ours, theirs) for ours, theirs in zip(net.buffers(), twin.buffers(), strict=True)
        )
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_network_that_is_compiled_in_place_gives_the_same():
    net = small_net()
    expected = representation(net, "flat")
    net.compile(backend="eager")
    torch.testing.assert_close(representation(net, "flat"), expected)


def test_hooks_of_the_users_own_are_heeded_at_the_hidden_layer():
    net = small_net()
    net.flat.register_forward_hook(lambda module, inputs, output: output * 2)
    torch.testing.assert_close(representation(net, "flat"), 2 * net.eval()[:-2](IMAGES).flatten(1).detach())


def test_no_hook_stays_on_the_network_after_a_pass():
    net = small_net()
    encoder = probe(net, "flat", IMAGES).encoder
    encoder(IMAGES)
    with pytest.raises(RuntimeError):
        encoder(torch.rand(4, 7, 8, 8))
    assert not any(module._forward_hooks for module in net.modules())
    assert net(IMAGES).shape == (4, 5)


def test_last_of_several_runs_of_a_layer_counts():
    net = Reuses()
    x = torch.rand(2, 4)
    torch.testing.assert_close(representation(net, "shared", x), net(x).detach(), rtol=0, atol=0)


def test_layer_that_is_never_run_is_refused():
    with pytest.raises(ConfigError, match="never runs it"):
        probe(Reuses(), "spare", torch.rand(2, 4))


Pair = namedtuple("Pair", "features extra")


@pytest.mark.parametrize(
    "wrap",
    [
        lambda y: (y,),
        lambda y: [y],
        lambda y: {"features": y},
        lambda y: {"features": y, "name": "a string"},
        lambda y: {"last_hidden_state": y[:, None] * 0, "pooler_output": y},
        lambda y: Pair(y, None),
    ],
    ids=["tuple", "list", "dict", "dict with text", "transformers", "namedtuple"],
)
def test_output_that_holds_one_tensor_is_unwrapped(wrap):
    net = Returns(wrap)
    x = torch.rand(3, 4)
    torch.testing.assert_close(representation(net, "output", x), net.linear(x).detach(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("wrap", "message"),
    [
        (lambda y: (y, y), r"holds 2 tensors \(0: \(3, 6\), 1: \(3, 6\)\)"),
        (lambda y: {"a": y, "b": y}, r"holds 2 tensors \(a: \(3, 6\), b: \(3, 6\)\)"),
        (lambda y: Pair(y, y), "holds 2 tensors"),
        (lambda y: None, r"holds 0 tensors \(NoneType\)"),
        (lambda y: y.sum(), r"gave \(\)"),
        (lambda y: y.flatten(), r"gave \(18,\)"),
        (lambda y: y.argmax(dim=1, keepdim=True), "torch.int64"),
        (lambda y: y[:1], r"gave \(1, 6\) torch.float32; expected floating point \(3, D\)"),
        (lambda y: y.detach(), "depends on no trainable parameter"),
    ],
)
def test_output_that_cannot_be_a_representation_is_refused(wrap, message):
    with pytest.raises(ConfigError, match=message):
        probe(Returns(wrap), "output", torch.rand(3, 4))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("avgpol", "avgpool"),
        ("layer9", r"layer\d"),
        ("layer2.0.con1", "layer2.0.conv1"),
        ("input of fx", "'fc'"),
        ("zzz", r"outermost layers \(conv1, bn1"),
        ("10", "its 10 outermost"),
        (10, "its 10 outermost"),
        (-11, "its 10 outermost"),
        (True, "no layer True"),
        (1.0, "no layer 1.0"),
        ("forward_head", "no layer 'forward_head'"),
    ],
)
def test_wrong_layer_is_refused_with_what_there_is(given, message):
    with pytest.raises(ConfigError, match=message):
        layer_name(torchvision.models.resnet18(), given)


def test_network_without_children_is_refused_with_the_way_out():
    with pytest.raises(ConfigError, match="or 'output'"):
        layer_name(nn.Linear(2, 2), -2)


def test_network_that_cannot_be_copied_is_refused():
    net = small_net()
    net.halved = net.conv.weight / 2  # not a leaf: torch refuses to copy it
    with pytest.raises(ConfigError, match="cannot be copied"):
        probe(net, "flat", IMAGES)


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("name", ["weight_norm", "spectral_norm"])
def test_the_successor_of_an_old_norm_that_cannot_be_copied_is_named_and_works(name):
    def network(norm) -> nn.Sequential:
        net = nn.Sequential(norm(nn.Conv2d(3, 8, 3)), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        net(torch.rand(2, 3, 16, 16))
        return net

    with pytest.raises(ConfigError, match=rf"torch\.nn\.utils\.parametrizations\.{name}"):
        BYOL(network(getattr(nn.utils, name)), 16, "2", 8, 16)
    learner = BYOL(network(getattr(nn.utils.parametrizations, name)), 16, "2", 8, 16)
    assert torch.isfinite(learner(torch.rand(4, 3, 16, 16)))


def test_tuples_hold_positional_and_mappings_keyword_arguments():
    net = nn.Bilinear(2, 3, 4)
    x, y = torch.rand(5, 2), torch.rand(5, 3)
    for view in ((x, y), {"input1": x, "input2": y}, OrderedDict(input2=y, input1=x)):
        torch.testing.assert_close(run(net, view), net(x, y))


def test_hidden_layer_says_what_it_reads():
    assert "layer='flat', pooling='none'" in repr(HiddenLayer(small_net(), "flat", "none", 0, 1))


def test_a_probe_leaves_the_seeds_of_gpus_it_does_not_use_alone(monkeypatch):
    """torch.manual_seed reseeds all of them, and those that are not started yet when they are."""
    seeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    torch.manual_seed(5)
    assert seeded == [5]
    net, example = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(), nn.Flatten()), torch.rand(2, 3, 8, 8)
    state = torch.get_rng_state()
    probe(net, None, example)
    assert seeded == [5]
    assert torch.equal(torch.get_rng_state(), state)


def test_an_index_may_come_as_text_from_a_command_line():
    net = nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 4, 3), flat=nn.Flatten(), fc=nn.Linear(4, 2)))
    assert layer_name(net, "-2") == layer_name(net, -2) == "flat"
    assert layer_name(net, "0") == "conv"
    with pytest.raises(ConfigError, match="no layer '-4'"):
        layer_name(net, "-4")
    numbered = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.Flatten(), nn.Identity()))
    assert layer_name(numbered, "1") == "1"  # its name, which is its index too

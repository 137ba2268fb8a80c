"""Networks that do not run the same way twice, that cannot serve, or that share parts: they work or get a
sentence.
"""

from collections import OrderedDict

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from byol.errors import ConfigError
from byol.method.byol import BYOL
from byol.method.lars import LARS, parameter_groups
from byol.method.loss import regression_loss
from byol.method.views import Views

SMALL = {"image_size": 16, "projection_size": 8, "projection_hidden_size": 16}


def images(count: int = 4, channels: int = 3, size: int = 16) -> Tensor:
    return torch.rand((count, channels, size, size), generator=torch.Generator().manual_seed(0))


def stem(width: int = 8) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())


class LayerDrop(nn.Module):
    """Each block is left out of every second pass, at random."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.blocks = stem(), nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(6))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            if not self.training or torch.rand(()) < 0.5:
                x = x + block(x)
        return x.mean((2, 3))


class Experts(nn.Module):
    """Each image goes through the one expert that its mean chooses."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.experts = stem(), nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        features = self.stem(x).mean((2, 3))
        chosen = (features[:, 0] * 1e4).long() % 3
        return torch.stack(
            [self.experts[int(expert)](row) for expert, row in zip(chosen, features, strict=True)]
        )


class Auxiliary(nn.Module):
    """Runs its body twice in training and once in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Sequential(stem(), nn.AdaptiveAvgPool2d(1), nn.Flatten()), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.body(x.flip(3))
        return self.head(self.body(x))


class Recomputed(nn.Module):
    """Keeps no activations of its stem: they are computed again in the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.stem = nn.Conv2d(3, 3, 1), stem()

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.stem, self.first(x), use_reentrant=True).mean((2, 3))


class UNet(nn.Module):
    """Reads its hidden layer late, has layers behind it and one that nothing runs, as SwinUNETR has."""

    passes = 0

    def __init__(self) -> None:
        super().__init__()
        self.unused, self.encoder = nn.LayerNorm(8), stem()
        self.decoder, self.out = stem(3), nn.Conv2d(3, 2, 1)
        self.decoder[0] = nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        type(self).passes += 1
        return self.out(self.decoder(self.encoder(x)))


def test_few_passes_are_made_to_look_at_a_network():
    UNet.passes = 0
    learner = BYOL(UNet(), hidden_layer="encoder", **SMALL)
    assert UNet.passes <= 5
    assert {name.split(".")[0] for name in learner.frozen} == {"unused", "decoder", "out"}


@pytest.mark.parametrize("kind", [LayerDrop, Experts])
def test_parts_that_a_pass_may_leave_out_are_not_taken_for_dead(kind):
    torch.manual_seed(0)  # two weights in a thousand send 16 images in a row to the same two of three experts
    assert BYOL(kind(), hidden_layer=None, **SMALL).frozen == ()


def test_a_layer_that_runs_more_often_in_training_is_read_right_in_evaluation():
    net = Auxiliary()
    learner = BYOL(net, hidden_layer="body", **SMALL)
    learner(images()).backward()
    expected = net.eval().body(learner.prepare(images()))
    net.train()
    torch.testing.assert_close(learner.embed(images()), expected)


@pytest.mark.filterwarnings(
    "ignore:None of the inputs have requires_grad"
)  # torch's word on passes without gradient
def test_networks_that_recompute_their_activations_serve():
    learner = BYOL(Recomputed(), hidden_layer=None, **SMALL)
    learner(images()).backward()
    assert learner.frozen == ()


@pytest.mark.parametrize(
    ("build", "options"),
    [
        (lambda: torchvision.models.alexnet(), {"image_size": 16, "hidden_layer": -1}),
        (Experts, {"channels": 1, "hidden_layer": None}),
        (Experts, {"example": torch.rand(1, 7), "image_size": None, "hidden_layer": None}),
    ],
    ids=["too small", "channels", "example"],
)
def test_a_batch_the_network_cannot_take_is_a_sentence(build, options):
    with pytest.raises(ConfigError, match="fails on a trial batch"):
        BYOL(build(), **SMALL | options)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_weights_of_another_type_than_float32_are_refused(dtype):
    with pytest.raises(ConfigError, match=r"net\.float\(\)"):
        BYOL(stem().to(dtype), hidden_layer=None, **SMALL)


def test_a_target_net_that_shares_a_layer_with_the_network_is_refused():
    def network() -> nn.Sequential:
        return nn.Sequential(OrderedDict(stem=stem(), pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten()))

    net, other = network(), network()
    other.stem = net.stem
    for wrong in (other, nn.Sequential(OrderedDict(net.named_children()))):
        with pytest.raises(ConfigError, match="shared with net"):
            BYOL(net, hidden_layer="flat", target_net=wrong, **SMALL)
    assert all(p.requires_grad for p in net.parameters())


def test_a_network_in_eval_mode_is_told_and_its_target_is_in_train_mode_all_the_same(caplog):
    learner = BYOL(stem().eval(), hidden_layer=None, **SMALL)
    assert "is in eval mode" in caplog.text
    assert all(module.training for module in learner.target.modules())


class Spectral(nn.Module):
    """Filters images by complex weights."""

    def __init__(self) -> None:
        super().__init__()
        self.filter, self.conv = nn.Parameter(torch.randn(16, 9, dtype=torch.complex64)), stem()

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(torch.fft.irfft2(torch.fft.rfft2(x) * self.filter)).mean((2, 3))


def test_complex_weights_are_trained_and_followed_by_the_target():
    learner = BYOL(Spectral(), **SMALL)
    started = learner.net.filter.detach().clone()
    learner(images()).backward()
    LARS(parameter_groups(learner, 1e-6), lr=1.0).step()
    moved = learner.net.filter.detach()
    assert not torch.equal(moved, started)
    learner.update_target(0.25)
    torch.testing.assert_close(learner.target.encoder.net.filter.detach(), 0.25 * started + 0.75 * moved)


class Gives(nn.Module):
    """Computes in float32 and returns another type, as networks do that autocast inside."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype, self.body = dtype, stem()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x).mean((2, 3)).to(self.dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_networks_that_give_another_type_than_float32_train(dtype):
    learner = BYOL(Gives(dtype), **SMALL)
    loss = learner(images())
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert learner.embed(images()).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert learner(images()).isfinite()


def test_a_network_that_gives_complex_numbers_is_refused():
    with pytest.raises(ConfigError, match="complex64"):
        BYOL(Gives(torch.complex64), **SMALL)


class Focus(nn.Module):
    """Puts the pixels of 2 x 2 squares beside one another, as YOLO does; a convolution of later comes first
    in it.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.late, self.first = nn.Conv2d(8, 16, 1), nn.Conv2d(4 * channels, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.late(self.first(torch.nn.functional.pixel_unshuffle(x, 2)))


class NormFirst(nn.Module):
    """Cannot take images of other channels; its convolutions stand in the wrong order."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.late, self.norm = nn.Conv2d(8, 16, 1), nn.BatchNorm2d(channels)
        self.first = nn.Conv2d(channels, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.late(self.first(self.norm(x)))


@pytest.mark.parametrize("kind", [Focus, NormFirst])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_channels_are_those_of_the_convolution_that_runs_first(kind, channels):
    learner = BYOL(kind(channels), **SMALL)
    assert learner.views.channels == channels
    learner(images(channels=channels)).backward()


class Graphs(nn.Module):
    """A batch of graphs as PyTorch Geometric makes it: nodes (N, 3), edges (2, E), and the graph of each
    node.
    """

    def __init__(self) -> None:
        super().__init__()
        self.nodes, self.graphs = nn.Linear(3, 8), nn.Linear(8, 6)

    def forward(self, x: Tensor, edges: Tensor, batch: Tensor) -> Tensor:
        h = self.nodes(x).relu()
        h = h.index_add(0, edges[1], h[edges[0]])
        count = int(batch.max()) + 1
        return self.graphs(torch.zeros(count, 8).index_add(0, batch, h)).relu()


def graphs(nodes: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(nodes, 3), torch.randint(0, nodes, (2, 12)), torch.arange(nodes) % count


def test_samples_of_batched_graphs_are_graphs_and_not_nodes():
    learner = BYOL(Graphs(), None, None, 8, 16, example=graphs(9, 4))
    learner(graphs(11, 4), graphs(7, 4)).backward()  # views of the same graphs with other nodes dropped
    assert learner.embed(graphs(9, 4)).shape == (4, 6)
    with pytest.raises(ConfigError, match="4 and 3 samples"):
        learner(graphs(9, 4), graphs(9, 3))
    with pytest.raises(ConfigError, match="batch of 1"):
        learner(graphs(9, 1), graphs(9, 1))


@pytest.mark.parametrize(
    ("wrap", "name"),
    [(torch.compile, "_orig_mod"), (nn.DataParallel, "module")],
    ids=["torch.compile", "DataParallel"],
)
def test_a_wrapped_network_is_refused_with_how_to_wrap_the_learner(wrap, name):
    with pytest.raises(ConfigError, match=rf"net\.{name}.*learner\.compile\(\).*net\.compile\(\)"):
        BYOL(wrap(stem()), **SMALL)


def test_a_representation_that_is_the_same_for_all_images_is_told(caplog):
    net = nn.Sequential(stem(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 8))
    BYOL(net, hidden_layer="output", **SMALL)
    assert "same for different inputs" not in caplog.text
    for p in net[3].parameters():
        nn.init.zeros_(p)
    learner = BYOL(net, hidden_layer="output", **SMALL)
    assert "same for different inputs" in caplog.text
    assert learner(images()) < 1e-6  # which looks like success


def test_integer_parameters_are_left_where_they_are():
    net = stem()
    net.register_parameter("count", nn.Parameter(torch.tensor([3]), requires_grad=False))
    learner = BYOL(net, hidden_layer=None, **SMALL)
    learner.update_target(0.5)
    assert learner.target.encoder.net.count.tolist() == [3]


def test_convnext_maps_are_pooled_over_space_also_where_channels_equal_the_height():
    net = torchvision.models.convnext_tiny()
    learner = BYOL(
        net, image_size=(384, 64), hidden_layer="features.1", projection_size=8, projection_hidden_size=16
    )
    assert learner.representation_size == 96


def test_empty_batches_are_refused():
    learner = BYOL(stem(), hidden_layer=None, **SMALL)
    for shape in ((0, 3, 16, 16), (4, 3, 0, 16)):
        with pytest.raises(ConfigError, match="at least one image"):
            learner(torch.rand(shape))
    with pytest.raises(ConfigError, match="batch of 1"):
        learner(images(1), return_embedding=True)
    with pytest.raises(ConfigError, match="channels"):
        BYOL(stem(), channels=0, **SMALL)


def test_a_loss_of_unlike_shapes_is_refused():
    with pytest.raises(ConfigError, match="expected the same"):
        regression_loss(torch.rand(4, 8), torch.rand(1, 8))


def test_views_without_a_seed_differ_from_call_to_call_and_follow_torchs_own_seed():
    views = Views(16)
    torch.manual_seed(1)
    first, second = views(images())[0], views(images())[0]
    torch.manual_seed(1)
    assert not torch.equal(first, second)
    assert torch.equal(first, views(images())[0])
    assert torch.equal(views(images(), seed=3)[0], views(images(), seed=3)[0])

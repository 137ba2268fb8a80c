"""Code written for byol-pytorch 0.9.1 runs with the import changed; what that package gets wrong is right."""

import copy
import inspect
import logging
import random

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save
from test_byol import equal, noise, set_apart, small_net, state
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import v2

from byol import BYOL
from byol.errors import ConfigError

# Its constructor, in its order; all can be given by place.
THEIRS = """
net image_size hidden_layer projection_size projection_hidden_size augment_fn augment_fn2
moving_average_decay use_momentum sync_batchnorm use_simplicial_embeddings sem_num_simplices
sem_simplex_dim sem_temperature
"""


def learner_of(net: nn.Module | None = None, *more: object, **options: object) -> BYOL:
    torch.manual_seed(0)
    given = {"image_size": 16, "hidden_layer": "flat", "projection_size": 8, "projection_hidden_size": 16}
    return BYOL(net or small_net(), *more, **{**given, **options})


def readme(learner: BYOL, resnet: nn.Module, *, momentum: bool) -> Tensor:
    """The loop of its README, with fewer and smaller images."""
    opt = torch.optim.Adam(learner.parameters(), lr=3e-4)

    def sample_unlabelled_images():
        return torch.randn(4, 3, 32, 32)

    for _ in range(2):
        images = sample_unlabelled_images()
        loss = learner(images)
        opt.zero_grad()
        loss.backward()
        opt.step()
        if momentum:
            learner.update_moving_average()  # update moving average of target encoder
    return loss


@pytest.mark.parametrize("momentum", [True, False])
def test_its_readme_example_trains_the_users_network_with_only_the_import_changed(momentum):
    resnet = torchvision.models.resnet18()
    before = state(resnet)
    options = {} if momentum else {"use_momentum": False}
    learner = BYOL(resnet, image_size=32, hidden_layer="avgpool", projection_hidden_size=64, **options)
    assert readme(learner, resnet, momentum=momentum).isfinite()
    assert not torch.equal(resnet.conv1.weight, before["conv1.weight"])
    torchvision.models.resnet18().load_state_dict(resnet.state_dict())
    projection, embedding = learner(torch.randn(2, 3, 32, 32), return_embedding=True)
    assert (projection.shape, embedding.shape) == ((2, 256), (2, 512))


def test_every_argument_of_its_constructor_is_here_in_its_place():
    found = [
        p.name
        for p in inspect.signature(BYOL).parameters.values()
        if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    ]
    assert found == THEIRS.split()


def test_its_ninth_argument_by_place_is_use_momentum_and_not_sync_batchnorm():
    given = (16, "flat", 8, 16, None, None, 0.99)
    assert not any(isinstance(m, nn.SyncBatchNorm) for m in BYOL(small_net(), *given, True).modules())
    simsiam = BYOL(small_net(), *given, False)
    assert simsiam.target is simsiam.online
    assert any(isinstance(m, nn.SyncBatchNorm) for m in BYOL(small_net(), *given, True, True).modules())


@pytest.mark.parametrize(
    "chosen",
    [{"use_simplicial_embeddings": True}, {"sem_num_simplices": 32}, {"sem_temperature": 0.1}],
    ids=str,
)
def test_simplicial_embeddings_are_refused_with_what_to_do(chosen):
    with pytest.raises(ConfigError, match=r"simplicial.*sem_\*.*Leave them out.*nn\.Sequential"):
        learner_of(**chosen)
    assert learner_of(use_simplicial_embeddings=False)(noise()).isfinite()


# Without momentum: SimSiam


def test_without_momentum_the_loss_is_simsiams():
    """Symmetric negative cosine, twice and shifted, between a prediction and the other view's projection."""
    learner = learner_of(use_momentum=False)
    one, other = noise(), noise(seed=1)
    twin = copy.deepcopy(learner)
    z1, z2 = twin.online(one), twin.online(other)
    p1, p2 = twin.predictor(z1), twin.predictor(z2)
    cosines = F.cosine_similarity(p1, z2.detach()) + F.cosine_similarity(p2, z1.detach())
    expected = (4 - 2 * cosines).mean()
    loss = learner(one, other)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    for ours, theirs in zip(learner.parameters(), twin.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None)
        if ours.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad)


def test_without_momentum_the_projector_is_simsiams_three_layers():
    layers = learner_of(use_momentum=False).online.projector
    assert [type(layer).__name__ for layer in layers] == [
        *("Linear", "BatchNorm1d", "ReLU") * 2, "Linear", "BatchNorm1d",
    ]  # fmt: skip
    assert [layer.bias is None for layer in layers if isinstance(layer, nn.Linear)] == [True] * 3
    assert [layer.affine for layer in layers if isinstance(layer, nn.BatchNorm1d)] == [True, True, False]


def test_without_momentum_no_tensor_is_held_twice_and_copies_and_files_hold_the_link():
    learner = learner_of(use_momentum=False)
    assert not any(name.startswith("target") for name in learner.state_dict())
    twin = copy.deepcopy(learner)
    assert twin.target is twin.online
    assert twin.online is not learner.online
    assert all(p.requires_grad for p in learner.online.projector.parameters())
    assert not any(m.training for m in learner.eval().target.modules())


def test_without_momentum_updating_the_target_changes_nothing_and_does_not_fail():
    """In byol-pytorch it is an AssertionError, so that its own trainer cannot train SimSiam."""
    learner = learner_of(use_momentum=False)
    before = state(learner)
    learner.update_moving_average()
    learner.update_target(0.5)
    learner.reset_moving_average()
    assert equal(state(learner), before)


def test_without_momentum_a_target_network_of_ones_own_is_refused():
    with pytest.raises(ConfigError, match=r"target_net"):
        learner_of(use_momentum=False, target_net=small_net(seed=1))


def test_without_momentum_training_on_differing_images_does_not_collapse():
    learner = learner_of(use_momentum=False)
    optimizer = torch.optim.SGD([p for p in learner.parameters() if p.requires_grad], lr=0.05, momentum=0.9)
    images = noise(64) * torch.linspace(0.1, 1, 64).view(-1, 1, 1, 1)
    first = learner(images).item()
    for _ in range(30):
        loss = learner(images)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < first
    assert F.normalize(learner.embed(images)).std(0).mean() > 0.01


# Views


def test_one_augment_fn_makes_both_views_and_the_second_alone_makes_view_2():
    def half(images: Tensor) -> Tensor:
        return images / 2

    images = noise()
    view1, view2 = learner_of(augment_fn=half).draw_views(images)
    assert torch.equal(view1, images / 2)
    assert torch.equal(view2, images / 2)
    learner = learner_of(augment_fn2=half)
    torch.manual_seed(3)
    view1, view2 = learner.draw_views(images)
    torch.manual_seed(3)
    assert torch.equal(view1, learner.views(images)[0])
    assert torch.equal(view2, images / 2)
    torch.testing.assert_close(learner.embed(images), learner_of().embed(images))  # prepared as built-in


def test_augment1_and_augment2_give_the_views_that_training_would():
    learner, images = learner_of(), noise()
    torch.manual_seed(1)
    expected = learner.draw_views(images)
    for number, function in enumerate((learner.augment1, learner.augment2)):
        torch.manual_seed(1)
        assert torch.equal(function(images), expected[number])


def test_torchvision_transforms_as_augment_fn_are_told_to_draw_once_a_batch(caplog):
    flip = v2.RandomHorizontalFlip()
    for function in (flip, v2.Compose([flip]), nn.Sequential(flip)):
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="byol"):
            learner_of(augment_fn=function)
        assert (
            f"torchvision's {type(function).__name__}" in caplog.text or "RandomHorizontalFlip" in caplog.text
        )
        assert "torch.stack" in caplog.text
    caplog.clear()
    learner_of(augment_fn=lambda images: torch.stack([flip(image) for image in images]))
    assert "torchvision" not in caplog.text


# Parts, by its names


def test_encoders_and_predictor_are_there_by_its_names_and_calls():
    learner = set_apart(learner_of()).eval()
    assert learner.online_encoder.net is learner.net
    assert learner.online_predictor is learner.predictor
    projection, representation = learner.online_encoder(noise())
    assert torch.equal(projection, learner.online(noise()))
    assert torch.equal(representation, learner.online_encoder.get_representation(noise()))
    assert torch.equal(representation, learner.online_encoder(noise(), return_projection=False))
    assert torch.equal(learner.target_encoder(noise())[0], learner.target(noise()))
    assert not any(p.requires_grad for p in learner.target_encoder.parameters())
    names = {name.partition(".")[0] for name in learner.online_encoder.state_dict()}
    assert names == {"net", "projector"}
    learner.online_encoder.train()
    assert learner.net.training


def test_second_argument_by_place_is_return_embedding():
    learner = learner_of().eval()
    projection, representation = learner(noise(), True)
    assert torch.equal(projection, learner(noise(), return_embedding=True)[0])
    assert representation.shape == (6, 8)
    assert learner(noise(), False).shape == ()


def test_reset_moving_average_makes_the_target_a_copy_of_the_online_network():
    learner = set_apart(learner_of())
    learner(noise())
    online = state(learner.online)
    assert not equal(state(learner.target), online)
    learner.reset_moving_average()
    assert equal(state(learner.target), online)
    assert equal(state(learner.online), online)
    assert not any(p.requires_grad for p in learner.target.parameters())


def test_tau_may_be_set_where_it_keeps_it():
    learner = set_apart(learner_of())
    learner.target_ema_updater.beta = 0.25
    before, online = learner.target.projector[0].weight.clone(), learner.online.projector[0].weight
    expected = learner.target_ema_updater.update_average(before, online)
    torch.testing.assert_close(expected, 0.25 * before + 0.75 * online)
    learner.update_moving_average()
    torch.testing.assert_close(learner.target.projector[0].weight, expected)


def test_a_hidden_layer_of_minus_1_is_the_networks_own_output():
    class TwoHeads(nn.Module):
        """Whose last child is not what it gives."""

        def __init__(self) -> None:
            super().__init__()
            self.body, self.unused = nn.Sequential(nn.Flatten(), nn.Linear(768, 6)), nn.Linear(6, 4)

        def forward(self, images: Tensor) -> Tensor:
            return self.body(images) + self.unused(self.body(images)).mean()

    learner = learner_of(TwoHeads(), hidden_layer=-1)
    assert learner.representation_size == 6
    torch.testing.assert_close(learner.eval().embed(noise()), learner.net(learner.prepare(noise())).detach())


# Its proven defects


def test_each_image_of_a_batch_gets_a_draw_of_its_own():
    """1: there, six copies of one image always became the same view."""
    for view in learner_of().draw_views(noise(1).expand(6, -1, -1, -1)):
        assert all(not torch.equal(view[i], view[j]) for i in range(6) for j in range(i))


def test_building_a_learner_leaves_the_network_and_the_random_states_as_they_were():
    """8: there, a pass over noise moved BatchNorm's statistics before the first step."""
    net = small_net()
    before = state(net)
    random.seed(5)
    drawn, numbers = torch.get_rng_state(), random.getstate()
    BYOL(net, 16, "flat", 8, 16)
    assert equal(state(net), before)
    assert random.getstate() == numbers
    assert not torch.equal(torch.get_rng_state(), drawn)  # for the heads, which are drawn


@pytest.mark.parametrize(("channels", "size"), [(1, (16, 16)), (13, (16, 16)), (1, (8, 20))])
def test_images_of_any_channels_and_any_shape_are_taken(channels, size):
    """9: there, only three channels and a square."""
    learner = learner_of(small_net(channels), image_size=size)
    view1, view2 = learner.draw_views(torch.rand(4, channels, *size))
    assert view1.shape == view2.shape == (4, channels, *size)
    assert learner(torch.rand(4, channels, *size)).isfinite()


def test_a_network_of_one_dimension_is_taken():
    """9: there, it fails in the constructor."""
    net = nn.Sequential(nn.Conv1d(2, 8, 5), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten())
    learner = BYOL(net, None, "output", 8, 16, example=torch.rand(2, 2, 50))
    assert learner(torch.rand(4, 2, 50), torch.rand(4, 2, 50)).isfinite()


def test_the_projector_is_fed_the_representation_itself():
    """10: there, simplicial embeddings stand between, unless they are switched off."""
    learner = learner_of()
    assert learner.online.projector[0].in_features == learner.representation_size == 8
    assert not any(isinstance(m, nn.Softmax) for m in learner.modules())


@pytest.mark.parametrize("sync", [True, False])
def test_sync_batchnorm_holds_for_network_projector_and_predictor_alike(sync):
    """11: there, the predictor and the network ignore it."""
    norms = [m for m in learner_of(sync_batchnorm=sync).modules() if "BatchNorm" in type(m).__name__]
    assert len(norms) == 5
    assert {isinstance(norm, nn.SyncBatchNorm) for norm in norms} == {sync}


def test_each_view_is_normalised_by_its_own_batch():
    """12: there, both views are one batch."""
    learner = learner_of()
    before = learner.net.norm.num_batches_tracked.item()
    learner(noise(), 3 * noise(seed=1) + 2)
    assert learner.net.norm.num_batches_tracked.item() == before + 2


def test_the_two_views_are_drawn_by_different_rules():
    """13: there, augment2 is augment1; in the paper only view 2 is ever solarized."""
    images = torch.full((64, 3, 16, 16), 0.9)
    learner = learner_of()
    torch.manual_seed(0)
    mean, std = (torch.tensor(getattr(learner.views, name)).view(3, 1, 1) for name in ("mean", "std"))
    darkest = [(view * std + mean).flatten(1).amin(1) for view in learner.draw_views(images)]
    assert (darkest[0] > 0.4).all()
    assert (darkest[1] < 0.4).any()


def test_images_are_normalised_alike_in_training_and_for_embeddings():
    """14: there, embeddings are made of images that are not normalised."""
    learner = learner_of()
    gray = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1).expand(2, 3, 16, 16)
    assert learner.prepare(gray).abs().max() < 1e-6
    _, embedding = learner.eval()(gray, return_embedding=True)
    torch.testing.assert_close(embedding.detach(), learner.net[:-1](torch.zeros(2, 3, 16, 16)).detach())


def test_a_single_image_is_embedded_in_training_mode_without_gradient_or_trace():
    """14: there, it is an AssertionError, and BatchNorm's statistics move."""
    learner = learner_of()
    before = state(learner)
    embedding = learner.embed(noise(1))
    assert embedding.shape == (1, 8)
    assert not embedding.requires_grad
    assert equal(state(learner), before)
    assert learner.training


def test_what_follows_the_online_network_and_what_is_the_targets_own():
    """15: parameters follow; the target's BatchNorm statistics are those of its own passes."""
    learner = set_apart(learner_of())
    learner(noise(), noise(seed=1))
    own = {name: buffer.clone() for name, buffer in learner.target.named_buffers()}
    learner.update_target(0.0)
    pairs = zip(learner.target.parameters(), learner.online.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    assert all(torch.equal(buffer, own[name]) for name, buffer in learner.target.named_buffers())


def test_maps_and_tokens_are_pooled_and_not_flattened():
    """16: there, a map of 8 x 14 x 14 makes a projector of 1,568 inputs."""
    assert learner_of(hidden_layer="conv").online.projector[0].in_features == 8
    vit = torchvision.models.VisionTransformer(16, 8, 1, 2, 12, 24, num_classes=3)
    assert learner_of(vit, hidden_layer="encoder").online.projector[0].in_features == 12


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: learner_of(hidden_layer="flatt"), "flat"),
        (lambda: learner_of(hidden_layer=7), "6 outermost layers"),
        (lambda: learner_of(nn.Flatten(), hidden_layer=None), "no trainable parameter"),
        (lambda: learner_of()(noise(1)), "two samples"),
    ],
)
def test_a_mistake_is_a_sentence_that_says_what_to_do(make, words):
    """17: there, AssertionError, IndexError, StopIteration."""
    with pytest.raises(ConfigError, match=words):
        make()


def test_images_of_bytes_are_taken():
    """17: there, a TypeError from torchvision."""
    assert learner_of()((noise() * 255).to(torch.uint8)).isfinite()


def test_no_tensor_is_saved_twice():
    """18: there, the encoder is, and safetensors refuses it."""
    tensors = learner_of().state_dict()
    assert len({tensor.data_ptr() for tensor in tensors.values()}) == len(tensors)
    save(tensors)


def test_torchs_seed_alone_repeats_the_views():
    """19: there, Python's random decides what is applied."""
    learner, found = learner_of(), []
    for seed in (1, 2):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(0)
        found.append(learner.draw_views(noise()))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_a_layer_that_is_called_with_keywords_can_be_the_hidden_layer():
    """20: there, its hook looks for a first argument by place."""

    class Keywords(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.end = nn.Conv2d(3, 8, 3), nn.Linear(8, 2)

        def forward(self, images: Tensor) -> Tensor:
            return self.end(self.body(input=images).mean((2, 3)))

    assert learner_of(Keywords(), hidden_layer="body")(noise()).isfinite()

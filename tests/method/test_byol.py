import copy
import io
import logging
from collections import OrderedDict

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from byol.errors import ConfigError
from byol.method.byol import BYOL
from byol.method.lars import LARS, parameter_groups
from byol.method.shared_norm import SharedBatchNorm
from byol.method.views import ViewConfig

SMALL = {"image_size": 16, "projection_size": 8, "projection_hidden_size": 16}


def noise(count: int = 6, channels: int = 3, size: int = 16, seed: int = 0) -> Tensor:
    return torch.rand((count, channels, size, size), generator=torch.Generator().manual_seed(seed))


def small_net(channels: int = 3, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = {"conv": nn.Conv2d(channels, 8, 3), "norm": nn.BatchNorm2d(8), "relu": nn.ReLU(inplace=True)}
    layers |= {"pool": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten(), "fc": nn.Linear(8, 5)}
    return nn.Sequential(OrderedDict(layers))


def small_learner(net: nn.Module | None = None, hidden_layer: str | int | None = "flat", **options) -> BYOL:
    torch.manual_seed(0)
    return BYOL(net or small_net(), hidden_layer=hidden_layer, **SMALL | options)


def set_apart(learner: BYOL) -> BYOL:
    """Move the online network, so that it and the target can be told from one another."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in learner.online.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=generator))
    return learner


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


# The network


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_images_of_any_number_of_channels_train(channels):
    learner = small_learner(small_net(channels))
    learner(noise(channels=channels)).backward()
    assert learner.embed(noise(channels=channels)).shape == (6, 8)


def test_channels_are_those_of_the_first_convolution_unless_given():
    assert small_learner(small_net(5)).views.channels == 5
    flat = nn.Sequential(nn.Flatten(), nn.Linear(2 * 16 * 16, 8))
    assert small_learner(flat, None, channels=2)(noise(channels=2)).isfinite()


@pytest.mark.parametrize("hidden_layer", ["flat", "pool", "conv", -2, 4, -1, "output", "input of fc", None])
def test_any_layer_serves(hidden_layer):
    learner = small_learner(hidden_layer=hidden_layer)
    learner(noise()).backward()
    assert learner.embed(noise()).ndim == 2


def test_network_is_trained_in_place_and_stays_the_users():
    net = small_net()
    net.norm.eval()
    net(noise()).sum().backward()
    before, grads = state(net), {name: p.grad.clone() for name, p in net.named_parameters()}
    learner = small_learner(net)
    assert learner.net is net
    assert learner.online.encoder.net is net
    assert equal(state(net), before)
    assert equal({name: p.grad for name, p in net.named_parameters()}, grads)
    assert [name for name, module in net.named_modules() if not module.training] == ["norm"]
    learner(noise()).backward()
    torch.optim.SGD(learner.parameters(), lr=0.1).step()
    assert not torch.equal(net.conv.weight, before["conv.weight"])
    assert net(noise()).shape == (6, 5)


@pytest.mark.parametrize("hidden_layer", ["avgpool", "layer3", "layer2.0.bn2", "conv1", "fc", "output", None])
def test_every_trainable_parameter_gets_a_gradient_and_the_others_are_named(hidden_layer, caplog):
    net = torchvision.models.resnet18(num_classes=7)
    with caplog.at_level(logging.INFO, logger="byol"):
        learner = BYOL(net, 32, hidden_layer, 8, 16)
    learner(noise(4, size=32)).backward()
    without = [name for name, p in learner.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []
    assert {name for name, p in net.named_parameters() if not p.requires_grad} == set(learner.frozen)
    assert ("fc.weight" in learner.frozen) == (hidden_layer not in ("fc", "output"))
    assert all(name in caplog.text for name in learner.frozen)


def test_parameters_the_user_froze_stay_frozen():
    net = small_net()
    net.conv.requires_grad_(False)
    learner = small_learner(net)
    learner(noise()).backward()
    assert net.conv.weight.grad is None
    assert learner.frozen == ("fc.weight", "fc.bias")


# The loss


def test_loss_is_the_papers_both_directions_averaged_over_the_batch():
    learner = set_apart(small_learner())
    view1, view2 = noise(), noise(seed=1)
    loss = learner(view1, view2)
    expected = torch.zeros(())
    for one, other in ((view1, view2), (view2, view1)):
        prediction, projection = learner.predictor(learner.online(one)), learner.target(other)
        expected = expected + (2 - 2 * F.cosine_similarity(prediction, projection)).mean()
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-5)


def test_loss_is_a_float32_scalar_from_zero_to_eight_and_symmetric():
    learner = set_apart(small_learner())
    for seed in range(20):
        view1, view2 = noise(seed=seed), noise(seed=100 + seed)
        loss = learner(view1, view2)
        assert loss.shape == ()
        assert loss.dtype == torch.float32
        assert 0 <= loss <= 8
        torch.testing.assert_close(learner(view2, view1), loss, rtol=0, atol=1e-5)


def test_loss_and_gradients_are_float32_under_bf16_autocast():
    learner = small_learner()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = learner(noise())
    loss.backward()
    assert loss.dtype == torch.float32
    assert all(p.grad.dtype == torch.float32 for p in learner.parameters() if p.grad is not None)


def test_gradient_is_that_of_a_target_which_teaches_and_is_not_taught():
    learner = set_apart(small_learner())
    view1, view2 = noise().requires_grad_(), noise(seed=1)
    learner(view1, view2).backward()
    found = {name: p.grad for name, p in learner.named_parameters() if p.grad is not None}
    assert not any(name.startswith("target") for name in found)
    found["view1"] = view1.grad

    projections = [learner.target(view).detach() for view in (view2, view1)]
    loss = torch.zeros(())
    for view, projection in zip((view1, view2), projections, strict=True):
        loss = loss + (2 - 2 * F.cosine_similarity(learner.predict(view), projection)).mean()
    trainable = {name: p for name, p in learner.named_parameters() if p.requires_grad} | {"view1": view1}
    expected = torch.autograd.grad(loss, trainable.values())
    assert found.keys() == trainable.keys()
    for name, gradient in zip(trainable, expected, strict=True):
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_constant_images_give_a_finite_loss_and_gradient(level):
    learner = small_learner()
    images = torch.full((6, 3, 16, 16), level)
    for loss in (learner(images), learner(images, images)):
        learner.zero_grad()
        loss.backward()
        assert loss.isfinite()
        assert all(p.grad.isfinite().all() for p in learner.parameters() if p.grad is not None)


def test_training_brings_the_loss_down():
    learner = small_learner(moving_average_decay=0.9)
    optimizer = torch.optim.Adam([p for p in learner.parameters() if p.requires_grad], lr=3e-3)
    images, losses = noise(32), []
    for _ in range(25):
        loss = learner(images)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        learner.update_moving_average()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


# BatchNorm


def projections(learner: BYOL, view1: Tensor, view2: Tensor) -> list[Tensor]:
    """What the target gives for the views, in the order of its passes."""
    seen: list[Tensor] = []
    handle = learner.target.register_forward_hook(lambda module, inputs, output: seen.append(output))
    learner(view1, view2)
    handle.remove()
    return seen


@pytest.mark.parametrize("pixel", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("place", ["view 1", "view 2", "images"])
def test_a_pixel_that_is_not_finite_harms_neither_statistics_nor_weights(place, pixel):
    learner = small_learner()
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.1)
    bad = noise(seed=1)
    bad[3, 1, 5, 7] = pixel
    if place == "images":  # whose crops may miss one pixel
        bad[3] = torch.nan
    fed = {"view 1": (bad, noise()), "view 2": (noise(), bad), "images": (bad,)}[place]
    before = copy.deepcopy(learner.state_dict())
    loss = learner(*fed)
    loss.backward()
    optimizer.step()
    assert loss.isnan()
    after = learner.state_dict()
    assert all(after[name].isfinite().all() for name in after)
    assert all(torch.equal(p, before[name]) for name, p in learner.named_parameters())
    assert learner(noise(), noise(seed=2)).isfinite()


def test_views_of_whole_numbers_and_of_half_precision_are_fed_as_they_are():
    words = nn.Sequential(nn.Embedding(50, 8), nn.Flatten(), nn.Linear(32, 6))
    learner = BYOL(words, hidden_layer=-1, example=torch.zeros(2, 4, dtype=torch.int64), projection_size=4)
    assert learner(torch.randint(50, (6, 4)), torch.randint(50, (6, 4))).isfinite()
    bright = torch.full((6, 3, 16, 16), 60_000.0, dtype=torch.float16)  # whose sum float16 cannot hold
    with torch.autocast("cpu", torch.bfloat16):
        assert small_learner()(bright + noise().half(), bright + noise(seed=1).half()).isfinite()


def test_each_view_has_batchnorm_statistics_of_its_own():
    learner = small_learner()
    view1, view2 = noise(), noise(seed=1)
    first, _ = projections(learner, view1, view2)
    again, _ = projections(learner, view1, 10 * view2 + 5)
    torch.testing.assert_close(again, first, rtol=0, atol=0)
    assert learner.net.norm.num_batches_tracked == 4


def test_joint_batchnorm_shares_the_statistics_of_both_views():
    learner = small_learner(joint_batchnorm=True)
    view1, view2 = noise(), noise(seed=1)
    (both,) = projections(learner, view1, view2)
    torch.testing.assert_close(both, learner.target(torch.cat([view1, view2])))
    (again,) = projections(learner, view1, 10 * view2 + 5)
    assert not torch.allclose(again[:6], both[:6])
    assert not torch.isclose(learner(view1, view2), small_learner()(view1, view2))


def test_joint_batchnorm_makes_no_difference_where_there_are_no_batch_statistics():
    joint, apart = small_learner(joint_batchnorm=True).eval(), small_learner().eval()
    torch.testing.assert_close(joint(noise(), noise(seed=1)), apart(noise(), noise(seed=1)))


def test_joint_batchnorm_refuses_views_that_are_not_tensors():
    learner = small_learner(joint_batchnorm=True)
    with pytest.raises(ConfigError, match="joint_batchnorm"):
        learner((noise(),), (noise(seed=1),))


def test_target_batchnorm_statistics_are_its_own():
    learner = set_apart(small_learner())
    alone = copy.deepcopy(learner.target)
    view1, view2 = noise(), noise(seed=1)
    learner(view1, view2)
    alone.train()
    alone(view1)
    alone(view2)
    for name, buffer in learner.target.named_buffers():
        torch.testing.assert_close(buffer, dict(alone.named_buffers())[name])
    assert not torch.allclose(learner.target.encoder.net.norm.running_mean, learner.net.norm.running_mean)


def test_target_is_in_train_mode_in_training_and_in_eval_mode_in_evaluation():
    learner = small_learner()
    assert all(module.training for module in learner.train().target.modules())
    learner.eval()
    before = state(learner.target)
    learner(noise(), noise(seed=1))
    assert not any(module.training for module in learner.target.modules())
    assert equal(state(learner.target), before)


def test_sync_batchnorm_converts_encoder_projector_predictor_and_target_alike():
    learner = small_learner(sync_batchnorm=True)
    norms = [m for m in learner.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert len(norms) == 5
    assert all(isinstance(norm, nn.SyncBatchNorm) for norm in norms)
    assert not any(p.requires_grad for p in learner.target.parameters())
    torch.testing.assert_close(learner(noise(), noise(seed=1)), small_learner()(noise(), noise(seed=1)))


@pytest.mark.parametrize(
    ("backend", "shared"), [("cuda:nccl", True), ("cpu:gloo,cuda:nccl", True), ("cpu:gloo", False)]
)
def test_processes_on_gpus_share_their_statistics_wherever_the_network_lies_yet(monkeypatch, backend, shared):
    """The usual script is DDP(BYOL(net, ...).cuda()): on a CPU when it is built, on a GPU in its first
    pass.
    """
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "get_backend_config", lambda: backend)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    norms = [m for m in small_learner().modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert all(isinstance(norm, nn.SyncBatchNorm) is shared for norm in norms)
    assert all(isinstance(norm, SharedBatchNorm) is not shared for norm in norms)
    own = small_learner(sync_batchnorm=False).modules()
    assert not any(isinstance(norm, nn.SyncBatchNorm | SharedBatchNorm) for norm in own)


def test_a_lazy_layer_is_refused_with_what_to_do():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.LazyLinear(5))
    with pytest.raises(ConfigError, match=r"lazy layers.*\(2\.weight\).*net\(batch\)"):
        BYOL(net, 16, "output", 8, 16)
    net(torch.rand(2, 3, 16, 16))
    assert BYOL(net, 16, "output", 8, 16).representation_size == 5


# The target


def test_target_starts_as_a_copy_of_the_online_network():
    learner = small_learner()
    assert equal(state(learner.target), state(learner.online))
    ours, theirs = set(learner.online.parameters()), set(learner.target.parameters())
    assert not ours & theirs


def test_target_has_no_trainable_parameter_and_no_predictor():
    learner = small_learner()
    assert not any(p.requires_grad for p in learner.target.parameters())
    count = sum(1 for _ in learner.online.parameters())
    assert sum(1 for _ in learner.target.parameters()) == count
    trained = {id(p) for group in parameter_groups(learner, 0.0) for p in group["params"]}
    assert not trained & {id(p) for p in learner.target.parameters()}


def test_target_net_starts_the_target_from_another_network_as_the_official_code_does():
    net, other = small_net(seed=0), small_net(seed=1)
    learner = small_learner(net, target_net=other)
    assert learner.target.encoder.net is other
    assert torch.equal(learner.target.encoder.net.conv.weight, small_net(seed=1).conv.weight)
    assert not torch.equal(learner.target.projector[0].weight, learner.online.projector[0].weight)
    learner(noise()).backward()
    assert all(p.grad is None and not p.requires_grad for p in learner.target.parameters())
    learner.update_target(0.0)
    assert torch.equal(other.conv.weight, net.conv.weight)


def test_target_net_of_another_architecture_or_the_network_itself_is_refused():
    net = small_net()
    for wrong in (net, small_net(1), nn.Linear(3, 3)):
        with pytest.raises(ConfigError, match="target_net"):
            small_learner(net, target_net=wrong)


@pytest.mark.parametrize("tau", [0.0, 0.3, 0.996, 1.0])
def test_target_moves_by_the_papers_formula(tau):
    learner = set_apart(small_learner())
    pairs = list(zip(learner.target.parameters(), learner.online.parameters(), strict=True))
    expected = [tau * target.double() + (1 - tau) * online.double() for target, online in pairs]
    learner.update_target(tau)
    for (target, _), value in zip(pairs, expected, strict=True):
        torch.testing.assert_close(target.double(), value, rtol=0, atol=1e-6)


def test_target_follows_parameters_and_not_buffers():
    learner = set_apart(small_learner())
    learner(noise(), noise(seed=1))
    before = {name: buffer.clone() for name, buffer in learner.target.named_buffers()}
    learner.update_target(0.0)
    assert equal(dict(learner.target.named_buffers()), before)
    assert equal(
        {n: p.data for n, p in learner.target.named_parameters()}, dict(learner.online.named_parameters())
    )


def test_target_moves_in_update_target_alone_towards_what_the_optimizer_left():
    learner = small_learner()
    optimizer = LARS(parameter_groups(learner, 1e-6), lr=1.0)
    started = {name: p.clone() for name, p in learner.target.named_parameters()}
    learner(noise()).backward()
    optimizer.step()
    assert equal(dict(learner.target.named_parameters()), started)
    learner.update_target(0.9)
    online = dict(learner.online.named_parameters())
    for name, p in learner.target.named_parameters():
        torch.testing.assert_close(p, 0.9 * started[name] + 0.1 * online[name], rtol=0, atol=1e-6)


def test_update_moving_average_is_update_target_with_the_constant_tau():
    one, other = set_apart(small_learner(moving_average_decay=0.7)), set_apart(small_learner())
    one.update_moving_average()
    other.update_target(0.7)
    assert equal(state(one.target), state(other.target))


@pytest.mark.parametrize("tau", [-0.1, 1.1, float("nan")])
def test_tau_outside_its_range_is_refused(tau):
    with pytest.raises(ConfigError, match="tau"):
        small_learner().update_target(tau)
    with pytest.raises(ConfigError, match="moving_average_decay"):
        small_learner(moving_average_decay=tau)


# The views


def test_torch_manual_seed_repeats_a_step():
    losses = []
    for seed in (1, 1, 2):
        learner = small_learner()
        torch.manual_seed(seed)
        losses.append(learner(noise()).item())
    assert losses[0] == losses[1] != losses[2]


def test_successive_steps_draw_different_views():
    learner = small_learner()
    one, other = learner.draw_views(noise()), learner.draw_views(noise())
    assert not torch.allclose(one[0], other[0])


def test_uint8_images_train():
    assert small_learner()((noise() * 255).to(torch.uint8)).isfinite()


def test_images_need_not_have_the_size_of_the_views():
    learner = small_learner()
    assert learner(noise(size=40)).isfinite()
    assert learner.embed(noise(size=40)).shape == (6, 8)


def test_views_may_be_oblong_and_configured():
    learner = small_learner(image_size=(12, 20), views=ViewConfig(solarize=(0.0, 0.0)))
    view1, view2 = learner.draw_views(noise())
    assert view1.shape == view2.shape == (6, 3, 12, 20)


def test_wrong_images_are_refused():
    learner = small_learner()
    for wrong in (noise(channels=1), noise()[0], noise().long(), [noise()]):
        with pytest.raises(ConfigError, match="expected"):
            learner(wrong)


def test_augment_fn_replaces_both_views():
    learner = small_learner(augment_fn=lambda images: images + 1)
    view1, view2 = learner.draw_views(torch.zeros(2, 3, 16, 16))
    assert (view1 == 1).all()
    assert (view2 == 1).all()


def test_augment_fn2_replaces_the_second_view_even_by_an_empty_module():
    for second in (lambda images: images, nn.Sequential(), nn.Identity()):
        learner = small_learner(augment_fn=lambda images: images + 1, augment_fn2=second)
        view1, view2 = learner.draw_views(torch.zeros(2, 3, 16, 16))
        assert (view1 == 1).all()
        assert (view2 == 0).all()


def test_augment_fn2_alone_is_refused_where_view_1_could_not_be_drawn():
    with pytest.raises(ConfigError, match=r"augment_fn2.*image_size"):
        small_learner(augment_fn2=lambda images: images, image_size=None, example=noise())


def test_learner_with_views_of_its_own_feeds_evaluation_images_as_they_are():
    learner = small_learner(augment_fn=lambda images: images)
    torch.testing.assert_close(learner.embed(noise()), learner.net.eval()[:-1](noise()).detach())


def test_learner_that_is_given_its_views_feeds_evaluation_images_as_they_are():
    """It has an image size, but the user's own code made the views, so only that code knows how images are
    prepared.
    """
    learner, images = small_learner(), noise() * 4 - 2
    learner(images, images.flip(3))
    torch.testing.assert_close(learner.embed(images), learner.net.eval()[:-1](images).detach())
    learner.eval()
    _, representation = learner(images, return_embedding=True)
    torch.testing.assert_close(representation, learner.net[:-1](images))


def test_learner_that_is_given_views_of_its_own_making_prepares_images():
    learner, twin = small_learner(), small_learner()
    learner(*learner.draw_views(noise()))
    twin(noise())
    images = noise(size=24)
    torch.testing.assert_close(learner.prepare(images), twin.prepare(images))
    assert learner.embed(images).shape == (6, 8)


def test_floats_of_another_scale_are_told_when_they_are_embedded(caplog):
    learner = small_learner()
    learner.embed(noise())
    assert "expected floats" not in caplog.text
    small_learner().embed(noise() * 255)
    assert caplog.text.count("expected floats from 0 to 1") == 1


# Views of the user's own, of any shape


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(3, 6), nn.Linear(5, 6)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.left(left) + self.right(right)


def vectors(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def two_inputs(seed: int) -> tuple[Tensor, Tensor]:
    return vectors(4, 3, seed=seed), vectors(4, 5, seed=seed + 10)


CASES = {
    "vectors": (lambda: nn.Linear(7, 6), lambda seed: vectors(4, 7, seed=seed)),
    "signals": (lambda: nn.Conv1d(2, 6, 3), lambda seed: vectors(4, 2, 9, seed=seed)),
    "videos": (lambda: nn.Conv3d(2, 6, 2), lambda seed: vectors(4, 2, 3, 5, 5, seed=seed)),
    "words": (lambda: nn.Embedding(11, 6), lambda seed: vectors(4, 5, seed=seed).abs().long()),
    "tuples": (TwoInputs, two_inputs),
    "dicts": (TwoInputs, lambda seed: dict(zip(("left", "right"), two_inputs(seed), strict=True))),
}


@pytest.mark.parametrize("case", CASES)
def test_views_of_any_shape_train_without_an_image_size(case):
    build, draw = CASES[case]
    torch.manual_seed(0)
    learner = BYOL(build(), None, None, 8, 16, example=draw(0))
    loss = learner(draw(1), draw(2))
    loss.backward()
    assert 0 < loss < 8
    assert all(p.grad is not None for p in learner.parameters() if p.requires_grad)
    assert learner.embed(draw(1)).shape == (4, 6)


def test_tuples_and_dicts_are_the_same_views():
    torch.manual_seed(0)
    learner = BYOL(TwoInputs(), None, None, 8, 16, example=two_inputs(0))
    as_dicts = [dict(zip(("left", "right"), two_inputs(seed), strict=True)) for seed in (1, 2)]
    torch.testing.assert_close(learner(two_inputs(1), two_inputs(2)), learner(*as_dicts))


def test_learner_without_image_size_needs_two_views():
    learner = BYOL(nn.Linear(7, 6), None, None, 8, 16, example=torch.rand(2, 7))
    with pytest.raises(ConfigError, match="two views"):
        learner(torch.rand(4, 7))


@pytest.mark.parametrize("images", [noise(1), (noise(1)[0], noise(1)[0])], ids=["drawn", "own"])
def test_batch_of_one_is_refused_in_training_and_serves_in_evaluation(images):
    learner = small_learner()
    views = (noise(1), noise(1, seed=1)) if isinstance(images, tuple) else (images,)
    with pytest.raises(ConfigError, match="batch of 1"):
        learner(*views)
    assert learner.eval()(*views).isfinite()
    assert learner.train().embed(noise(1)).shape == (1, 8)


def test_views_of_different_sizes_of_batch_are_refused_with_both_numbers():
    with pytest.raises(ConfigError, match="views hold 4 and 6 samples"):
        small_learner()(noise(4), noise(6))


# The representation


def test_embed_gives_what_the_network_computes_in_evaluation():
    learner = small_learner()
    learner(noise())
    images = noise()
    mean = torch.tensor(learner.views.mean).view(3, 1, 1)
    std = torch.tensor(learner.views.std).view(3, 1, 1)
    expected = copy.deepcopy(learner.net).eval()[:-1]((images - mean) / std)
    found = learner.embed(images)
    assert found.dtype == torch.float32
    assert not found.requires_grad
    torch.testing.assert_close(found, expected.detach(), rtol=0, atol=1e-5)


def test_embed_leaves_modes_and_buffers_as_they_were():
    learner = small_learner()
    learner.net.norm.eval()  # a frozen BatchNorm of the user's
    modes = {name: module.training for name, module in learner.named_modules()}
    before = state(learner)
    learner.embed(noise())
    assert {name: module.training for name, module in learner.named_modules()} == modes
    assert equal(state(learner), before)
    with pytest.raises(ConfigError):
        learner.embed(noise(channels=4))
    assert {name: module.training for name, module in learner.named_modules()} == modes


def test_embed_draws_nothing_at_random():
    learner = small_learner()
    torch.testing.assert_close(learner.embed(noise()), learner.embed(noise()), rtol=0, atol=0)


def test_embed_under_bf16_autocast_is_float32():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert small_learner().embed(noise()).dtype == torch.float32


def test_return_embedding_gives_projection_and_representation_as_in_byol_pytorch():
    learner = small_learner().eval()
    projection, representation = learner(noise(), return_embedding=True)
    torch.testing.assert_close(representation.detach(), learner.embed(noise()))
    torch.testing.assert_close(projection, learner.online.projector(representation))
    alone = learner(noise(), return_embedding=True, return_projection=False)
    torch.testing.assert_close(alone, representation)


@pytest.mark.parametrize("joint", [False, True])
def test_representation_of_view_1_comes_with_the_loss_and_without_gradient(joint):
    """What a classifier beside needs, from the same forward pass: behind DDP no hook has to look into the
    module.
    """
    learner, twin = (small_learner(joint_batchnorm=joint) for _ in range(2))
    seen: list[Tensor] = []
    learner.online.encoder.register_forward_hook(lambda module, inputs, output: seen.append(output.detach()))
    loss, representation = learner(noise(), noise(seed=1), return_representation=True)
    assert torch.equal(representation, seen[0][:6])
    assert not representation.requires_grad
    assert torch.equal(loss, twin(noise(), noise(seed=1)))
    loss.backward()
    twin(noise(), noise(seed=1)).backward()
    for ours, theirs in zip(learner.parameters(), twin.parameters(), strict=True):
        assert ours.grad is None if theirs.grad is None else torch.equal(ours.grad, theirs.grad)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("own_views", [False, True])
def test_compiled_learner_trains_as_before_and_each_network_is_one_graph(own_views):
    """torch's compiler warns of its own look at gradients."""
    learner, twin = small_learner(), small_learner()
    learner.compile(backend="eager", fullgraph=True)
    for seed in range(3):
        losses = []
        for one in (learner, twin):
            torch.manual_seed(seed)
            losses.append(one(noise(), noise(seed=1)) if own_views else one(noise()))
            losses[-1].backward()
        torch.testing.assert_close(*losses, rtol=0, atol=0)
    torch.testing.assert_close(learner.net.conv.weight.grad, twin.net.conv.weight.grad)
    assert equal(state(learner), state(twin))


# Copies and files


def test_deep_copy_trains_apart_from_the_original():
    learner = small_learner()
    twin = copy.deepcopy(learner)
    before = state(learner)
    twin(noise()).backward()
    torch.optim.SGD(twin.parameters(), lr=0.1).step()
    twin.update_target(0.5)
    assert equal(state(learner), before)
    assert all(p.grad is None for p in learner.parameters())
    assert not equal(state(twin), before)


def test_state_dict_holds_every_tensor_once_and_continues_identically():
    learner = set_apart(small_learner())
    learner(noise())
    saved = io.BytesIO()
    torch.save(learner.state_dict(), saved)
    saved.seek(0)
    other = BYOL(small_net(seed=5), hidden_layer="flat", **SMALL)
    other.load_state_dict(torch.load(saved, weights_only=True))
    assert equal(state(other), state(learner))
    torch.testing.assert_close(other(noise(), noise(seed=1)), learner(noise(), noise(seed=1)), rtol=0, atol=0)
    pointers = [value.data_ptr() for value in learner.state_dict().values()]
    assert len(set(pointers)) == len(pointers)


def test_whole_learner_survives_a_file():
    learner = small_learner()
    saved = io.BytesIO()
    torch.save(learner, saved)
    saved.seek(0)
    loaded = torch.load(saved, weights_only=False)
    torch.testing.assert_close(
        loaded(noise(), noise(seed=1)), learner(noise(), noise(seed=1)), rtol=0, atol=0
    )


# Refusals


def test_missing_image_size_and_example_are_refused():
    with pytest.raises(ConfigError, match="image_size"):
        BYOL(small_net())


def test_network_without_trainable_parameters_is_refused():
    for net in (nn.Flatten(), small_net().requires_grad_(False)):
        with pytest.raises(ConfigError, match="no trainable parameter"):
            small_learner(net, None)


def test_representation_without_trainable_parameters_is_refused():
    net = small_net()
    net.conv.requires_grad_(False)
    with pytest.raises(ConfigError, match="depends on no trainable parameter"):
        small_learner(net, "conv")


@pytest.mark.parametrize("sizes", [{"projection_size": 0}, {"projection_hidden_size": -1}])
def test_heads_without_size_are_refused(sizes):
    with pytest.raises(ConfigError, match=next(iter(sizes))):
        small_learner(**sizes)


def test_a_wrong_layer_name_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="pool"):
        small_learner(hidden_layer="pol")


def test_frozen_parameters_show_in_the_printed_learner():
    assert "frozen=fc.weight, fc.bias" in repr(small_learner())


# The heads


def test_heads_are_those_of_the_official_code():
    learner = BYOL(small_net(), 16, "flat")
    for head, features in ((learner.online.projector, 8), (learner.predictor, 256)):
        first, norm, activation, last = head
        assert (first.in_features, first.out_features, first.bias is not None) == (features, 4096, True)
        assert isinstance(norm, nn.BatchNorm1d)
        assert (norm.eps, norm.momentum, norm.affine) == (1e-5, 0.1, True)
        assert isinstance(activation, nn.ReLU)
        assert (last.in_features, last.out_features, last.bias) == (4096, 256, None)


def test_heads_start_with_the_official_truncated_normal_weights_and_zero_biases():
    learner = small_learner(projection_size=256, projection_hidden_size=512)
    for head in (learner.online.projector, learner.predictor, learner.target.projector):
        assert (head[0].bias == 0).all()
        for weight in (head[0].weight, head[3].weight):
            in_sigmas = weight.detach() * weight.shape[1] ** 0.5
            assert in_sigmas.abs().max() <= 2.001
            assert in_sigmas.std().item() == pytest.approx(0.8796, abs=0.02)  # of a normal cut at two sigmas


def test_code_written_for_byol_pytorch_runs():
    """The keywords, calls and optimizer of its README, on a smaller network and smaller images."""
    resnet = torchvision.models.resnet18()
    learner = BYOL(
        resnet,
        image_size=32,
        hidden_layer="avgpool",
        projection_size=256,
        projection_hidden_size=512,
        moving_average_decay=0.99,
    )
    opt = torch.optim.Adam(learner.parameters(), lr=3e-4)
    before = state(resnet)
    for _ in range(2):
        loss = learner(torch.randn(4, 3, 32, 32))
        opt.zero_grad()
        loss.backward()
        opt.step()
        learner.update_moving_average()
    torchvision.models.resnet18().load_state_dict(resnet.state_dict())
    assert loss.isfinite()
    assert not torch.equal(resnet.conv1.weight, before["conv1.weight"])
    projection, embedding = learner(torch.randn(2, 3, 32, 32), return_embedding=True)
    assert (projection.shape, embedding.shape) == ((2, 256), (2, 512))

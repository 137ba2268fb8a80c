import copy
import io

import pytest
import torch
from torch import nn

from byol.errors import ConfigError
from byol.method.lars import LARS, parameter_groups


def parameter(*values: float, shape: tuple[int, ...] = (1, -1)) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values).view(shape))


def steps(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], seeds: range) -> None:
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        for p in parameters:
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()


def weights() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in [(4, 3), (4,), (2, 3, 3, 3)]]


def test_six_steps_equal_official(golden):
    values = golden("lars")
    names = [name.removeprefix("init/") for name in values if name.startswith("init/")]
    parameters = {name: nn.Parameter(values[f"init/{name}"]) for name in names}
    optimizer = LARS(
        parameters.values(),
        lr=0.0,
        momentum=float(values["momentum"]),
        weight_decay=float(values["weight_decay"]),
        eta=float(values["eta"]),
    )
    for step, lr in enumerate(values["lr"].tolist()):
        optimizer.param_groups[0]["lr"] = lr
        for name, p in parameters.items():
            p.grad = values[f"grad{step}/{name}"]
        optimizer.step()
        for name, p in parameters.items():
            torch.testing.assert_close(
                p.detach(),
                values[f"after{step}/{name}"],
                rtol=1e-5,
                atol=1e-5,
                msg=lambda m, n=name, s=step: f"{s} {n}: {m}",
            )


def test_two_updates_equal_those_the_official_code_printed():
    w, bias = parameter(3.0, 4.0), parameter(1.0, shape=(1,))
    optimizer = LARS([w, bias], lr=0.2, weight_decay=0.01)
    for expected_w, expected_bias in (([-0.0006805, -0.0007328], -0.02), ([-0.0012927, -0.0013922], -0.038)):
        before_w, before_bias = w.detach().clone(), bias.detach().clone()
        w.grad, bias.grad = torch.full_like(w, 0.1), torch.full_like(bias, 0.1)
        optimizer.step()
        torch.testing.assert_close((w - before_w).detach(), torch.tensor([expected_w]), rtol=0, atol=1e-6)
        torch.testing.assert_close(
            (bias - before_bias).detach(), torch.tensor([expected_bias]), rtol=0, atol=1e-6
        )


@pytest.mark.parametrize(("value", "gradient"), [(0.0, 2.0), (3.0, 0.0)])
def test_trust_ratio_is_one_when_a_norm_is_zero(value, gradient):
    w = parameter(value)
    w.grad = torch.full_like(w, gradient)
    LARS([w], lr=0.5, momentum=0.0).step()
    torch.testing.assert_close(w.detach(), torch.tensor([[value - 0.5 * gradient]]), rtol=0, atol=0)


def test_without_decay_the_update_is_eta_of_the_weight_norm_whatever_the_gradient_size():
    for size in (1e-3, 1.0, 1e3):
        w = parameter(3.0, 4.0)
        w.grad = size * torch.tensor([[0.6, 0.8]])
        LARS([w], lr=1.0, eta=1e-3).step()
        torch.testing.assert_close(w.detach(), torch.tensor([[3.0, 4.0]]) * (1 - 1e-3))


def test_one_dimensional_parameters_get_plain_momentum_sgd_in_any_group():
    ours, theirs = [parameter(1.0, -2.0, shape=(2,))], [parameter(1.0, -2.0, shape=(2,))]
    steps(LARS([{"params": ours, "weight_decay": 0.5}], lr=0.1), ours, range(4))
    steps(torch.optim.SGD(theirs, lr=0.1, momentum=0.9), theirs, range(4))
    torch.testing.assert_close(ours, theirs)


def test_learning_rate_is_outside_the_momentum():
    """A change of the rate acts at once on the whole buffer, as in torch.optim.SGD."""
    ours, theirs = [parameter(1.0, shape=(1,))], [parameter(1.0, shape=(1,))]
    lars, sgd = LARS(ours, lr=1.0), torch.optim.SGD(theirs, lr=1.0, momentum=0.9)
    for optimizer, parameters in ((lars, ours), (sgd, theirs)):
        steps(optimizer, parameters, range(1))
        optimizer.param_groups[0]["lr"] = 0.0
        before = parameters[0].detach().clone()
        steps(optimizer, parameters, range(1, 2))
        torch.testing.assert_close(parameters[0].detach(), before, rtol=0, atol=0)
        optimizer.param_groups[0]["lr"] = 0.3
        steps(optimizer, parameters, range(2, 3))
    torch.testing.assert_close(ours, theirs)


def test_groups_keep_their_own_values():
    apart, together = weights(), weights()
    steps(
        LARS([{"params": apart[:1], "lr": 0.3, "weight_decay": 0.1}, {"params": apart[1:]}], lr=0.1),
        apart,
        range(3),
    )
    first, rest = LARS(together[:1], lr=0.3, weight_decay=0.1), LARS(together[1:], lr=0.1)
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        for p in together:
            p.grad = torch.randn(p.shape, generator=generator)
        first.step()
        rest.step()
    torch.testing.assert_close(apart, together, rtol=0, atol=0)


def test_state_dict_round_trip_continues_identically():
    parameters = weights()
    optimizer = LARS(parameters, lr=0.1, weight_decay=0.01)
    steps(optimizer, parameters, range(3))
    saved = io.BytesIO()
    torch.save(optimizer.state_dict(), saved)
    saved.seek(0)
    resumed = [nn.Parameter(p.detach().clone()) for p in parameters]
    other = LARS(resumed, lr=9.0)
    other.load_state_dict(torch.load(saved, weights_only=True))
    steps(optimizer, parameters, range(3, 6))
    steps(other, resumed, range(3, 6))
    torch.testing.assert_close(resumed, parameters, rtol=0, atol=0)


def test_follows_a_torch_scheduler():
    parameters = [parameter(1.0, shape=(1,))]
    optimizer = LARS(parameters, lr=1.0, momentum=0.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.1**epoch)
    for expected in (0.0, -0.1, -0.11):
        parameters[0].grad = torch.ones(1)
        optimizer.step()
        scheduler.step()
        assert parameters[0].item() == pytest.approx(expected, abs=1e-6)


def test_parameters_without_gradient_stay():
    moved, kept = weights()[:2], weights()[2]
    before = kept.detach().clone()
    optimizer = LARS([*moved, kept], lr=0.1, weight_decay=0.1)
    steps(optimizer, moved, range(2))
    torch.testing.assert_close(kept.detach(), before, rtol=0, atol=0)
    assert kept not in optimizer.state


def test_float64_and_float32_parameters_train_side_by_side():
    mixed, alone = weights(), weights()
    mixed[2] = nn.Parameter(mixed[2].detach().double())
    alone[2] = nn.Parameter(alone[2].detach().double())
    together = LARS(mixed, lr=0.1, weight_decay=0.01)
    apart = [LARS([p], lr=0.1, weight_decay=0.01) for p in alone]
    for p, q in zip(mixed, alone, strict=True):
        p.grad, q.grad = torch.ones_like(p), torch.ones_like(q)
    together.step()
    for optimizer in apart:
        optimizer.step()
    torch.testing.assert_close(mixed, alone, rtol=0, atol=0)


def test_gradients_are_left_as_they_were():
    parameters = weights()
    optimizer = LARS(parameters, lr=0.1, weight_decay=0.1)
    for p in parameters:
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert all((p.grad == 1).all() for p in parameters)


def test_step_returns_the_loss_of_a_closure():
    w = parameter(2.0, 0.0)

    def closure() -> torch.Tensor:
        loss = w.square().sum()
        loss.backward()
        return loss

    assert LARS([w], lr=0.1).step(closure).item() == 4.0
    assert w[0, 0] < 2


@pytest.mark.parametrize(
    "bad",
    [
        {"lr": -0.1},
        {"lr": float("nan")},
        {"momentum": -0.1},
        {"momentum": 1.0},
        {"weight_decay": -1e-6},
        {"eta": -1.0},
    ],
)
def test_refuses_values_outside_their_range(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        LARS([parameter(1.0)], **{"lr": 0.1} | bad)


def test_parameter_groups_hold_every_trainable_parameter_once_and_decay_only_matrices():
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2), nn.Linear(2, 2)
    )
    module[4].requires_grad_(False)
    decayed, kept = parameter_groups(module, weight_decay=0.3)
    assert [p.ndim for p in decayed["params"]] == [4, 2]
    assert [p.ndim for p in kept["params"]] == [1, 1, 1, 1]
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.3, 0.0)
    trainable = {p for p in module.parameters() if p.requires_grad}
    assert {*decayed["params"], *kept["params"]} == trainable


def test_parameter_groups_serve_torch_optimizers():
    module = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    by_hand = copy.deepcopy(module)
    ours = torch.optim.SGD(parameter_groups(module, weight_decay=0.5), lr=0.1)
    theirs = torch.optim.SGD([{"params": [by_hand[0].weight], "weight_decay": 0.5}, {"params": []}], lr=0.1)
    theirs.param_groups[1]["params"] = [by_hand[0].bias, *by_hand[1].parameters()]
    for optimizer, net in ((ours, module), (theirs, by_hand)):
        net(torch.arange(12.0).view(4, 3)).square().mean().backward()
        optimizer.step()
    torch.testing.assert_close(list(module.parameters()), list(by_hand.parameters()), rtol=0, atol=0)


def test_parameter_groups_refuse_a_frozen_module():
    with pytest.raises(ConfigError, match="no trainable parameter"):
        parameter_groups(nn.Linear(2, 2).requires_grad_(False), weight_decay=0.0)

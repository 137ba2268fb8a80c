"""A step does what it promises: accumulation is one large batch, rates and moments are those of the plan."""

import copy
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import byol
from byol import Plan
from byol.data.batches import Batch
from byol.evaluation.online import ProbedLearner
from byol.train.config import ExtraConfig, OptimConfig, TrainConfig
from byol.train.plan import ImageFacts, plan_run
from byol.train.step import build_optimizer, steps
from byol.world import World

PIXELS = 6  # of the vectors that stand in for images


def plan_of(accumulation: int = 1, steps: int = 4, **changes: Any) -> Plan:
    """Batches of 8 in fp32 with SGD; rates and tau that leave large traces."""
    config = TrainConfig(
        "unused", batch_size=8, epochs=steps, precision="fp32", device="cpu", seed=5,
        optim=OptimConfig(name="sgd", base_lr=2.0, accumulation=accumulation, warmup_epochs=1, base_tau=0.6),
    )  # fmt: skip
    plan = plan_run(config, ImageFacts(8, (16, 16), 3, False), World.join("cpu"))
    assert plan.total_steps == steps
    return replace(plan, **changes)


def learner_of(net: nn.Module | None = None, *, batchnorm: bool = True) -> byol.BYOL:
    """A learner of vectors; without BatchNorm an image is the same in any batch."""
    torch.manual_seed(0)
    net = net or nn.Sequential(nn.Linear(PIXELS, 12), nn.Tanh(), nn.Linear(12, 10))
    learner = byol.BYOL(net, hidden_layer="output", projection_size=4, projection_hidden_size=7,
                        example=torch.zeros(2, PIXELS))  # fmt: skip
    if not batchnorm:
        for head in (learner.online.projector, learner.target.projector, learner.predictor):
            head[1] = nn.LayerNorm(7)
    learner.target.requires_grad_(False)
    return learner


def batches_of(micro: int, seed: int = 1) -> Iterator[Batch]:
    """Endless views; however they are cut into micro-batches, batch after batch of 8 is the same."""
    noise = torch.Generator().manual_seed(seed)
    while True:
        view1, view2 = torch.randn(2, 8, PIXELS, generator=noise)
        for part in torch.arange(8).split(micro):
            yield Batch(view1[part], view2[part], part)


def trained(learner: byol.BYOL, plan: Plan, batches: Any = None) -> list[Any]:
    batches = batches_of(plan.micro_batch_size) if batches is None else batches
    return list(steps(learner, batches, build_optimizer(learner, plan), plan))


def tensors(learner: byol.BYOL) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in learner.state_dict().items()}


@pytest.mark.parametrize("optimizer", ["sgd", "lars", "adamw"])
@pytest.mark.parametrize("accumulation", [2, 4])
def test_accumulated_micro_batches_are_one_large_batch(optimizer, accumulation):
    ends = []
    for parts in (1, accumulation):
        learner = learner_of(batchnorm=False)
        results = trained(learner, plan_of(parts, optimizer=optimizer, base_lr=0.1))
        ends.append((tensors(learner), [result.loss.item() for result in results]))
    (whole, losses), (parts, losses_of_parts) = ends
    assert losses_of_parts == pytest.approx(losses, rel=1e-5)
    before = tensors(learner_of(batchnorm=False))
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-4, atol=1e-6, msg=name)
        assert not torch.equal(before[name], value), name


@pytest.mark.parametrize("accumulation", [1, 4])
def test_the_target_moves_once_a_step_after_the_optimizer(accumulation):
    learner, plan = learner_of(), plan_of(accumulation)
    running = steps(learner, batches_of(plan.micro_batch_size), build_optimizer(learner, plan), plan)
    for step in range(plan.total_steps):
        before = [value.clone() for value in learner.target.parameters()]
        result = next(running)
        tau = 1 - (1 - 0.6) * (math.cos(math.pi * step / plan.total_steps) + 1) / 2
        assert result.tau == pytest.approx(tau)
        for target, old, online in zip(
            learner.target.parameters(), before, learner.online.parameters(), strict=True
        ):
            torch.testing.assert_close(target, tau * old + (1 - tau) * online, rtol=1e-5, atol=1e-7)


def reference(learner: byol.BYOL, plan: Plan, optimizer: torch.optim.Optimizer) -> None:
    """The loop of the paper's Algorithm 1 in plain torch."""
    batches = batches_of(8)
    base = plan.base_lr * 8 / 256
    factors = [group["lr"] for group in optimizer.param_groups]
    for step in range(plan.total_steps):
        passed = (step - plan.warmup_steps) / (plan.total_steps - plan.warmup_steps)
        warm = step < plan.warmup_steps
        lr = base * (step / plan.warmup_steps if warm else (1 + math.cos(math.pi * passed)) / 2)
        for group, factor in zip(optimizer.param_groups, factors, strict=True):
            group["lr"] = lr * factor
        view1, view2, *_ = next(batches)
        loss = learner(view1, view2)
        optimizer.zero_grad()
        loss.backward()
        if plan.clip:
            gradients = [p.grad for p in learner.parameters() if p.grad is not None]
            norm = math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients))
            for gradient in gradients:
                gradient.mul_(min(1.0, plan.clip / norm))
        optimizer.step()
        learner.update_target(1 - (1 - 0.6) * (math.cos(math.pi * step / plan.total_steps) + 1) / 2)


def groups(learner: byol.BYOL, plan: Plan) -> list[dict[str, Any]]:
    """Weights decay, biases and what BatchNorm has do not; the rates are those of their part."""
    found: list[dict[str, Any]] = []
    for part, factor in ((learner.online, 1.0), (learner.predictor, plan.predictor_lr)):
        parameters = [p for p in part.parameters() if p.requires_grad]
        for decays in (True, False):
            chosen = [p for p in parameters if (p.ndim > 1) == decays]
            decay = plan.weight_decay if decays else 0.0
            found.append({"params": chosen, "lr": factor, "weight_decay": decay})
    return found


@pytest.mark.parametrize("momentum", [0.5, 0.95])
@pytest.mark.parametrize("predictor_lr", [1.0, 10.0])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_run_is_that_of_torchs_own_optimizer(optimizer, predictor_lr, momentum):
    lr = 2.0 if optimizer == "sgd" else 0.05
    plan = plan_of(
        steps=6,
        optimizer=optimizer,
        predictor_lr=predictor_lr,
        momentum=momentum,
        weight_decay=0.1,
        base_lr=lr,
    )
    # Behind BatchNorm the gradient of a bias is 0 but for rounding, which adamw would enlarge.
    ours, theirs = learner_of(batchnorm=False), learner_of(batchnorm=False)
    trained(ours, plan)
    if optimizer == "sgd":
        torchs: torch.optim.Optimizer = torch.optim.SGD(groups(theirs, plan), momentum=momentum)
    else:
        torchs = torch.optim.AdamW(groups(theirs, plan), betas=(momentum, 0.95))
    reference(theirs, plan, torchs)
    for name, value in tensors(theirs).items():
        torch.testing.assert_close(tensors(ours)[name], value, rtol=1e-4, atol=1e-6, msg=name)


class Odd(nn.Module):
    """A weight that lies in memory as it is said: a layer after which nothing is changed."""

    def __init__(self, layer: nn.Module, weight: Tensor) -> None:
        super().__init__()
        self.layer, self.weight = layer, nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        return (y.to(self.weight.dtype) @ self.weight).real + y


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize(
    "weight",
    [
        lambda noise: noise(9, 9),
        lambda noise: noise(9, 9).t(),
        lambda noise: noise(9, 12)[:, 2:11],  # with gaps
        lambda noise: torch.complex(noise(9, 9), noise(9, 9)),
    ],
    ids=["rows", "columns", "gaps", "complex"],
)
def test_however_weights_lie_in_memory_the_optimizer_is_torchs(weight, optimizer):
    def learner() -> byol.BYOL:
        torch.manual_seed(3)
        first = nn.Sequential(nn.Linear(PIXELS, 9), nn.Tanh())
        return learner_of(Odd(first, weight(torch.randn)), batchnorm=False)

    plan = plan_of(steps=6, optimizer=optimizer, weight_decay=0.1, base_lr=0.5)
    ours, theirs = learner(), learner()
    before = ours.net.weight.detach().clone()
    trained(ours, plan)
    kinds = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}
    settings = {"sgd": {"momentum": plan.momentum}, "adamw": {"betas": (plan.momentum, plan.beta2)}}
    reference(theirs, plan, kinds[optimizer](groups(theirs, plan), foreach=False, **settings[optimizer]))
    assert not torch.equal(ours.net.weight, before)
    for name, value in tensors(theirs).items():
        torch.testing.assert_close(tensors(ours)[name], value, rtol=1e-4, atol=1e-6, msg=name)


def test_a_vits_adamw_is_torchs_with_gradients_of_bounded_length():
    plan = plan_of(steps=6, optimizer="adamw", weight_decay=0.1, base_lr=0.05, beta2=0.5, clip=9.7)
    ours, theirs, unbounded = (learner_of(batchnorm=False) for _ in range(3))
    norms = [float(result.gradient_norm) for result in trained(ours, plan)]
    assert min(norms) < 9.7 < max(norms)  # some are shortened; what is told is what came
    reference(theirs, plan, torch.optim.AdamW(groups(theirs, plan), betas=(plan.momentum, 0.5)))
    for name, value in tensors(theirs).items():
        torch.testing.assert_close(tensors(ours)[name], value, rtol=1e-4, atol=1e-6, msg=name)
    trained(unbounded, replace(plan, clip=0.0))
    assert not torch.allclose(unbounded.net[0].weight, ours.net[0].weight)


def test_twice_the_batch_moves_the_target_as_far_as_two_steps():
    """tau ** 2 for 8 images where tau is meant for 4 (Busbridge et al. 2023); the cosine runs by steps."""
    plan, usual = (
        plan_run(
            TrainConfig("unused", batch_size=8, epochs=4, device="cpu", precision="fp32",
                        optim=OptimConfig(base_tau=0.6, warmup_epochs=1, tau_batch=batch)),
            ImageFacts(8, (16, 16), 3, False),
            World.join("cpu"),
        )
        for batch in (4, None)
    )  # fmt: skip
    learner = learner_of()
    before = [value.clone() for value in learner.target.parameters()]
    result = next(steps(learner, batches_of(8), build_optimizer(learner, plan), plan))
    assert result.tau == pytest.approx(0.36)
    online = list(learner.online.parameters())
    for _ in range(2):
        before = [0.6 * old + 0.4 * new for old, new in zip(before, online, strict=True)]
    for target, expected in zip(learner.target.parameters(), before, strict=True):
        torch.testing.assert_close(target, expected, rtol=1e-5, atol=1e-7)
    assert [plan.tau_at(step) for step in range(4)] == pytest.approx([usual.tau_at(s) ** 2 for s in range(4)])
    (said,) = [line for line in plan.lines() if line.startswith("switches ")]
    assert "not the paper's" in said
    assert "tau 0.6 of 4 images to the power of 2" in said
    assert not any("tau" in line for line in usual.lines() if line.startswith("switches "))


def test_a_run_with_extra_views_trains_their_predictors_at_the_predictors_rate_and_says_what_they_are():
    extra = ExtraConfig(local=2, cutout=1, targets=3)
    config = TrainConfig("unused", batch_size=8, epochs=4, device="cpu", precision="fp32", extra=extra)
    facts = ImageFacts(8, (16, 16), 3, False)
    plan, usual = (
        plan_run(one, facts, World.join("cpu")) for one in (config, replace(config, extra=ExtraConfig()))
    )
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    learner = byol.BYOL(net, 16, "output", 8, 16, extra=[*plan.predicted])
    groups = {id(p): g["lr_factor"] for g in build_optimizer(learner, plan).param_groups for p in g["params"]}
    rates = {groups[id(p)] for p in learner.extra_predictors.parameters()}
    assert rates == {groups[id(p)] for p in learner.predictor.parameters()} == {10.0}
    (said,) = [line for line in plan.lines() if line.startswith("switches ")]
    for words in (
        "not the paper's",
        "2 local views and 1 cutout view",
        "arXiv 2602.05845",
        "3 more views",
        "FastSiam",
    ):
        assert words in said
    # Local views have 8 pixels a side; what the online network sees counts thrice, for the gradient.
    assert plan.passes == pytest.approx(8 + 3 * (1 + 2 * 8**2 / plan.image_size[0] ** 2) + 3)
    assert usual.passes == 8
    assert not any("view" in line for line in usual.lines() if line.startswith("switches "))


@pytest.mark.parametrize("momentum", [0.5, 0.95])
def test_lars_has_the_momentum_and_the_predictors_rate_of_the_plan(momentum):
    """v = m v + 0.001 |w| / |g + d w| (g + d w), w = w - lr v; the lr of the predictor is ten times that."""
    plan = plan_of(steps=5, optimizer="lars", momentum=momentum, predictor_lr=10.0, weight_decay=0.1)
    learner = learner_of()
    optimizer = build_optimizer(learner, plan)
    watched = {learner.online.encoder.net[0].weight: 1.0, learner.predictor[3].weight: 10.0}
    expected = {weight: weight.detach().double().clone() for weight in watched}
    velocity = {weight: torch.zeros_like(value) for weight, value in expected.items()}
    gradients: dict[Tensor, Tensor] = {}
    optimizer.register_step_pre_hook(
        lambda *_: gradients.update({w: w.grad.double().clone() for w in watched})
    )
    for result in steps(learner, batches_of(8), optimizer, plan):
        for weight, factor in watched.items():
            w = expected[weight]
            update = gradients[weight] + 0.1 * w
            trust = 0.001 * w.norm() / update.norm() if w.norm() * update.norm() > 0 else 1.0
            velocity[weight] = momentum * velocity[weight] + trust * update
            expected[weight] = w - result.lr * factor * velocity[weight]
            np.testing.assert_allclose(
                weight.detach().numpy(), expected[weight].numpy(), rtol=2e-4, atol=1e-6
            )


def test_every_micro_batch_draws_dropout_of_its_own_and_again_the_same():
    class Noisy(nn.Module):
        """Keeps what its dropout draws in training."""

        def __init__(self) -> None:
            super().__init__()
            self.layer, self.drawn = nn.Linear(PIXELS, 10), []

        def forward(self, x: Tensor) -> Tensor:
            x = self.layer(x)
            if self.training and torch.is_grad_enabled() and len(x) == 4:
                self.drawn.append(tuple(nn.functional.dropout(torch.ones(40)).tolist()))
            return x

    drawn = []
    for start in (0, 2):
        net = Noisy()
        learner, plan = learner_of(net), plan_of(2)
        net.drawn.clear()
        for _ in steps(learner, batches_of(4), build_optimizer(learner, plan), plan, start):
            torch.rand(3)  # what a caller draws in between changes nothing
        drawn.append(list(net.drawn))
    assert len(drawn[0]) == len(set(drawn[0])) == 4 * 2 * 2  # steps, micro-batches, views
    assert drawn[1] == drawn[0][8:]


@pytest.mark.parametrize("failing", ["a loss that is not finite", "batches that stop"])
def test_a_step_that_fails_leaves_no_trace(failing):
    class StopNow(Exception):
        """What batches raise when a signal has come."""

    def until(number: int) -> Iterator[Batch]:
        for count, batch in enumerate(batches_of(4)):
            if count == number:
                if failing == "batches that stop":
                    raise StopNow
                batch = batch._replace(view1=batch.view1 * float("nan"))
            yield batch

    plan = plan_of(2)
    learner = learner_of()
    optimizer = build_optimizer(learner, plan)
    running = steps(learner, until(5), optimizer, plan)  # in the second half of step 3
    next(running)
    next(running)
    before, moments = tensors(learner), copy.deepcopy(optimizer.state_dict())
    assert any(value.abs().sum() > 0 for name, value in before.items() if "running_mean" in name)
    with pytest.raises((byol.TrainingError, StopNow)):
        next(running)
    assert tensors(learner).keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in tensors(learner).items())
    assert all(parameter.grad is None for parameter in learner.parameters())
    assert str(optimizer.state_dict()["state"]) == str(moments["state"])


def test_weights_that_are_spoiled_already_are_not_called_sound():
    """As by the gradient of a step before, which a GPU does not tell of in time."""
    for spoiled, says in ((False, "did not touch the weights"), (True, "spoiled the weights")):
        learner, plan = learner_of(), plan_of()
        running = steps(learner, batches_of(8), build_optimizer(learner, plan), plan)
        next(running)
        with torch.no_grad():
            learner.net[0].weight[0, 0] = torch.nan if spoiled else 1.0
        bad = (Batch(view * torch.nan, view, rows) for view, _, rows, *_ in batches_of(8))
        again = running if spoiled else steps(learner, bad, build_optimizer(learner, plan), plan)
        with pytest.raises(byol.TrainingError, match=says):
            next(again)


def test_views_of_any_kind_are_trained_on():
    """Plain tuples, of dicts: the step knows nothing of pictures."""

    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(PIXELS, 10)

        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            return self.layer(left + right)

    torch.manual_seed(0)
    example = {"left": torch.zeros(2, PIXELS), "right": torch.zeros(2, PIXELS)}
    learner = byol.BYOL(
        Sum(), hidden_layer="output", projection_size=4, projection_hidden_size=7, example=example
    )
    views = (({"left": a, "right": a}, {"left": b, "right": b}, rows) for a, b, rows, *_ in batches_of(8))
    results = trained(learner, plan_of(), views)
    assert [result.step for result in results] == [1, 2, 3, 4]
    assert all(result.loss.isfinite() for result in results)


def test_batches_that_end_too_soon_are_one_sentence():
    few = [batch for batch, _ in zip(batches_of(8), range(2), strict=False)]
    with pytest.raises(byol.DataError, match="ended in step 2 of 4"):
        trained(learner_of(), plan_of(), few)


def test_the_forward_that_is_given_is_what_is_called():
    """DDP, for one: it calls the module that holds the learner, and averages its gradients."""

    class Counted(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module, self.calls = module, 0

        def forward(self, *inputs: Any) -> Any:
            self.calls += 1
            return self.module(*inputs)

    alone, wrapped, plan = learner_of(), learner_of(), plan_of(2)
    trained(alone, plan)
    forward = Counted(ProbedLearner(wrapped))
    for _ in steps(wrapped, batches_of(4), build_optimizer(wrapped, plan), plan, forward=forward):
        pass
    assert forward.calls == 8
    assert all(torch.equal(value, tensors(wrapped)[name]) for name, value in tensors(alone).items())

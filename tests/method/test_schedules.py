import pytest
import torch

from byol.errors import ConfigError
from byol.method.schedules import learning_rate, tau

OFFICIAL = {
    40: (0.45, 0.97),
    100: (0.45, 0.99),
    300: (0.3, 0.99),
    1000: (0.2, 0.996),
}  # epochs: base_lr, base_tau
RUN = {"base_lr": 0.2, "batch_size": 512, "total_steps": 100, "warmup_steps": 10}


@pytest.mark.parametrize("batch_size", [4096, 512])
@pytest.mark.parametrize("epochs", OFFICIAL)
def test_schedules_equal_official(golden, epochs, batch_size):
    values = {
        name.rsplit("_", 2)[0]: v
        for name, v in golden("schedules").items()
        if name.endswith(f"_{epochs}_{batch_size}")
    }
    base_lr, base_tau = OFFICIAL[epochs]
    total, warmup = int(values["total"]), int(values["warmup"])
    run = {"base_lr": base_lr, "batch_size": batch_size, "total_steps": total, "warmup_steps": warmup}
    steps = values["k"].tolist()
    rates = torch.tensor([learning_rate(step, **run) for step in steps])
    taus = torch.tensor([tau(step, base_tau=base_tau, total_steps=total) for step in steps])
    torch.testing.assert_close(rates, values["lr"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(taus, values["tau"], rtol=0, atol=1e-5)


def test_learning_rate_rises_from_zero_to_the_scaled_peak_and_falls_to_zero():
    assert learning_rate(0, **RUN) == 0
    assert learning_rate(5, **RUN) == pytest.approx(0.2)
    assert learning_rate(10, **RUN) == pytest.approx(0.4)
    assert learning_rate(55, **RUN) == pytest.approx(0.2)
    assert learning_rate(99, **RUN) > 0
    assert learning_rate(100, **RUN) == pytest.approx(0)


def test_learning_rate_without_warmup_starts_at_the_peak():
    assert learning_rate(0, **RUN | {"warmup_steps": 0}) == pytest.approx(0.4)


def test_learning_rate_follows_torch_cosine_annealing_behind_the_warmup():
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=90)
    for step in range(10, 100):
        assert learning_rate(step, **RUN) == pytest.approx(scheduler.get_last_lr()[0], abs=1e-9)
        optimizer.step()
        scheduler.step()


def test_tau_rises_from_base_to_one():
    assert tau(0, base_tau=0.99, total_steps=100) == pytest.approx(0.99)
    assert tau(50, base_tau=0.99, total_steps=100) == pytest.approx(0.995)
    assert tau(99, base_tau=0.99, total_steps=100) < 1
    assert tau(100, base_tau=0.99, total_steps=100) == 1


def test_schedules_stay_at_their_end_beyond_the_run():
    assert learning_rate(1000, **RUN) == learning_rate(100, **RUN)
    assert tau(1000, base_tau=0.99, total_steps=100) == 1


@pytest.mark.parametrize(
    ("step", "change"),
    [
        (-1, {}),
        (0, {"total_steps": 0}),
        (0, {"warmup_steps": 100}),
        (0, {"warmup_steps": -1}),
        (0, {"total_steps": 5}),
    ],
)
def test_learning_rate_refuses_a_run_that_cannot_be(step, change):
    with pytest.raises(ConfigError, match=r"expected"):
        learning_rate(step, **RUN | change)


@pytest.mark.parametrize(
    ("step", "base_tau", "total"), [(-1, 0.9, 10), (0, 0.9, 0), (0, 1.1, 10), (0, -0.1, 10)]
)
def test_tau_refuses_a_run_that_cannot_be(step, base_tau, total):
    with pytest.raises(ConfigError, match=r"expected"):
        tau(step, base_tau=base_tau, total_steps=total)

"""Variants of other papers: each does what its paper says, and plain BYOL knows nothing of them."""

import pytest
import torch
from torch import Tensor, nn

from byol.errors import ConfigError
from byol.method.byol import BYOL
from byol.method.loss import regression_loss


def learner(**options: object) -> BYOL:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()
    )
    return BYOL(net, 12, projection_size=8, projection_hidden_size=16, **options)


def noise(seed: int) -> Tensor:
    return torch.randn(8, 3, 12, 12, generator=torch.Generator().manual_seed(seed))


def trained(one: BYOL, steps: int = 3) -> BYOL:
    optimizer = torch.optim.SGD(one.parameters(), lr=0.1)
    for step in range(steps):
        one(noise(2 * step), noise(2 * step + 1)).backward()
        optimizer.step()
        optimizer.zero_grad()
        one.update_target(0.9)
    return one


def test_without_switches_every_number_is_plain_byols():
    """Off means not there: the same tensors, drawn in the same order, and the same steps."""
    off = {"linear_predictor": False, "head_batchnorm": True, "ema_statistics": False}
    plain, switched = trained(learner()).state_dict(), trained(learner(**off)).state_dict()
    assert plain.keys() == switched.keys()
    assert all(map(torch.equal, plain.values(), switched.values()))
    assert [type(part).__name__ for part in learner().predictor] == [
        "Linear",
        "BatchNorm1d",
        "ReLU",
        "Linear",
    ]


def test_a_linear_predictor_is_one_matrix():
    one = learner(linear_predictor=True)
    view1, view2 = noise(0), noise(1)
    with torch.no_grad():
        predicted = [one.online(view) @ one.predictor.weight.T for view in (view1, view2)]
        targets = [one.target(view) for view in (view1, view2)]
    by_hand = regression_loss(predicted[0], targets[1]) + regression_loss(predicted[1], targets[0])
    torch.testing.assert_close(one(view1, view2), by_hand.mean())
    assert list(one.predictor.state_dict()) == ["weight"]


def test_heads_without_batchnorm_treat_every_row_by_itself():
    one = trained(learner(head_batchnorm=False))
    rows = torch.randn(6, 24, generator=torch.Generator().manual_seed(0))
    together = one.predictor(one.online.projector(rows))
    apart = torch.cat([one.predictor(one.online.projector(row[None])) for row in rows])
    torch.testing.assert_close(together, apart)
    assert not [part for part in (*one.online.projector, *one.predictor) if isinstance(part, nn.BatchNorm1d)]


def test_the_targets_statistics_are_an_average_of_the_online_networks():
    """EMAN: after each step as the weights are, whatever batch the target sees, in train mode too."""
    one = learner(ema_statistics=True)
    optimizer, expected = torch.optim.SGD(one.parameters(), lr=0.1), None
    for step in range(4):
        one.train()
        one(noise(2 * step), noise(2 * step + 1)).backward()
        optimizer.step()
        one.update_target(0.9)
        online = one.online.encoder.net[1].running_mean
        expected = 0.1 * online if expected is None else 0.9 * expected + 0.1 * online
    torch.testing.assert_close(one.target.encoder.net[1].running_mean, expected)
    first = one.target(noise(0))[:1]
    torch.testing.assert_close(one.target(noise(0)[:1]), first)  # by itself as in a batch
    assert one.online.training
    assert not torch.equal(trained(learner()).target.encoder.net[1].running_mean, expected)


@pytest.mark.parametrize("switch", [{"ema_statistics": True}, {"head_batchnorm": False}])
def test_what_needs_a_target_is_refused_without_one(switch):
    with pytest.raises(ConfigError, match="Without momentum"):
        learner(use_momentum=False, **switch)

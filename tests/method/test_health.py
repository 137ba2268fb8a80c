import copy

import numpy as np
import pytest
import torch
from torch import nn

from byol.method.health import health, settle


def rows(count: int = 64, dims: int = 16, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn((count, dims), generator=torch.Generator().manual_seed(0)) + 0.3


def by_numpy(x: torch.Tensor) -> dict[str, float]:
    unit = x.double().numpy()
    unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
    share = np.linalg.svd(unit, compute_uv=False)
    share = share / share.sum()
    count = len(unit)
    potentials = [
        np.exp(-2 * np.sum((unit[i] - unit[j]) ** 2)) for i in range(count) for j in range(count) if i != j
    ]
    return {
        "std": unit.std(axis=0).mean() * unit.shape[1] ** 0.5,
        "effective_rank": np.exp(-np.sum(share * np.log(share))),
        "uniformity": np.log(np.mean(potentials)),
    }


@pytest.mark.parametrize("shape", [(64, 16), (16, 64), (2, 3)])
def test_values_equal_numpy(shape):
    x = rows(*shape)
    found = {name: value.item() for name, value in health(x).items()}
    assert found == pytest.approx(by_numpy(x), rel=1e-4)


def test_values_do_not_depend_on_the_scale_of_the_rows():
    small, large = health(rows(scale=1) * 1e-3), health(rows(scale=1) * 1e3)
    assert {k: v.item() for k, v in small.items()} == pytest.approx(
        {k: v.item() for k, v in large.items()}, rel=1e-4
    )


def test_alignment_is_the_squared_distance_of_partners():
    x, y = rows(), rows().flip(0)
    unit = [z / z.norm(dim=1, keepdim=True) for z in (x, y)]
    assert health(x, y)["alignment"].item() == pytest.approx(
        (unit[0] - unit[1]).square().sum(dim=1).mean().item(), rel=1e-5
    )
    assert health(x, 2 * x)["alignment"].item() == pytest.approx(0, abs=1e-6)
    assert "alignment" not in health(x)


def test_rows_that_fill_the_sphere_look_healthy():
    found = health(torch.randn((2000, 32), generator=torch.Generator().manual_seed(0)))
    assert found["std"].item() == pytest.approx(1, abs=0.02)
    assert found["effective_rank"].item() > 31
    assert found["uniformity"].item() < -3.5


@pytest.mark.parametrize(
    "collapsed", [torch.full((64, 16), 3.0), torch.ones(64, 1) * torch.arange(16.0), torch.zeros(64, 16)]
)
def test_equal_rows_look_collapsed(collapsed):
    found = health(collapsed)
    assert found["std"].item() == pytest.approx(0, abs=1e-3)
    assert found["effective_rank"].item() == pytest.approx(1, abs=1e-2)
    assert found["uniformity"].item() == pytest.approx(0, abs=1e-3)


def test_effective_rank_counts_the_dimensions_in_use():
    x = torch.zeros(200, 64)
    x[:, :5] = torch.randn((200, 5), generator=torch.Generator().manual_seed(0))
    assert health(x)["effective_rank"].item() == pytest.approx(5, abs=0.05)


def test_one_row_and_half_precision_give_finite_float32():
    for x in (rows(1), rows().bfloat16(), rows().half()):
        for value in health(x).values():
            assert value.isfinite()
            assert value.dtype == torch.float32


def test_no_gradient_is_recorded():
    assert not any(value.requires_grad for value in health(rows().requires_grad_()).values())


def test_settled_networks_see_images_as_training_passes_do():
    """torch's own training pass is the answer, but for its variance, which divides by one more."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.BatchNorm1d(128)
    )
    x = 5 + 3 * torch.randn(64, 3, 6, 6)
    expected = copy.deepcopy(network).train()(x)
    settle(network, x)
    assert not network.training
    torch.testing.assert_close(network(x), expected, rtol=0.02, atol=0.02)
    assert [network[1].momentum, network[4].momentum] == [0.1, 0.1]


def test_statistics_of_training_stay_as_they_are():
    network = nn.BatchNorm2d(3)
    network(torch.randn(4, 3, 5, 5))
    before = copy.deepcopy(network.state_dict())
    settle(network, 100 + torch.randn(4, 3, 5, 5))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())

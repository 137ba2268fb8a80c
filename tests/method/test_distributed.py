from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import distributed as dist, nn
from torch.nn.parallel import DistributedDataParallel

from byol.errors import ConfigError
from byol.method.byol import BYOL
from byol.method.lars import LARS, parameter_groups


def net_with_classifier() -> nn.Module:
    layers = {"conv": nn.Conv2d(3, 8, 3), "norm": nn.BatchNorm2d(8), "relu": nn.ReLU()}
    layers |= {"pool": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten(), "fc": nn.Linear(8, 5)}
    return nn.Sequential(OrderedDict(layers))


def train(rank: int, folder: str) -> None:
    """Two steps on this rank's own images; what the rank ends with goes to a file."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.manual_seed(rank)  # DDP brings the ranks together
    learner = BYOL(net_with_classifier(), 16, "flat", 8, 16)
    ddp = DistributedDataParallel(learner)
    started = [p.detach().clone() for p in learner.online.parameters()]
    optimizer = LARS(parameter_groups(learner, 1e-6), lr=1.0)
    for _ in range(2):
        loss = ddp(torch.rand(4, 3, 16, 16))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        learner.update_target(0.9)
    moved = sum(not torch.equal(p, q) for p, q in zip(started, learner.online.parameters(), strict=True))
    parameters = {name: p.detach() for name, p in learner.named_parameters()}
    torch.save({"parameters": parameters, "loss": loss.item(), "moved": moved}, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


def late(rank: int, folder: str) -> None:
    """A learner that is there before the other process; both have the same seed and images."""
    torch.set_num_threads(1)
    learner = BYOL(net_with_classifier(), 16, "flat", 8, 16, sync_batchnorm=True)
    torch.manual_seed(0)
    images = torch.rand(4, 3, 16, 16)
    alone = learner.draw_views(images)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    with pytest.raises(ConfigError, match="init_process_group first"):
        learner(images)
    learner.eval()(images)
    drawn = []
    for _ in range(2):
        torch.manual_seed(0)
        drawn.append(learner.draw_views(images))
    torch.save({"alone": alone, "drawn": drawn}, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_equal_seeds_draw_other_views_on_every_rank_and_a_learner_before_the_group_is_a_sentence(
    tmp_path: Path,
):
    torch.multiprocessing.spawn(late, args=(str(tmp_path),), nprocs=2)
    one, other = (torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1))
    for view in (0, 1):
        assert torch.equal(one["alone"][view], other["alone"][view])
        assert torch.equal(one["drawn"][0][view], one["drawn"][1][view])  # a seed repeats them
        same = (one["drawn"][0][view] == other["drawn"][0][view]).flatten(1).all(dim=1)
        assert not same.any()


@pytest.mark.slow
def test_ranks_train_as_one_although_nothing_reaches_the_classifier(tmp_path: Path):
    """DDP fails on the second step when a trainable parameter got no gradient in the first."""
    torch.multiprocessing.spawn(train, args=(str(tmp_path),), nprocs=2)
    one, other = (torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1))
    assert one["loss"] != other["loss"]  # their images differ
    assert one["moved"] == other["moved"] >= 7
    assert one["parameters"].keys() == other["parameters"].keys()
    for name, value in one["parameters"].items():
        torch.testing.assert_close(
            other["parameters"][name], value, rtol=0, atol=0, msg=lambda m, n=name: f"{n}: {m}"
        )

"""Activations that are computed again for the gradient: the same numbers in less memory."""

import copy
import io
import os
import subprocess
import sys

import pytest
import timm
import torch
from torch import nn

from byol.errors import ConfigError
from byol.method.byol import BYOL
from byol.method.recompute import Recomputed, recompute
from byol.models.convnet import ConvNet
from byol.models.resnet import BasicBlock, Bottleneck, ResNet


def small_resnet(block: type = Bottleneck) -> nn.Module:
    return ResNet(block, (2, 1, 2, 1), stem_channels=8, stage_channels=(4, 8, 8, 8), stem="small")


def small_vit() -> nn.Module:
    sizes = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 3, "num_heads": 2, "num_classes": 0}
    return timm.create_model("vit_tiny_patch16_224", drop_path_rate=0.5, proj_drop_rate=0.2, **sizes)


@pytest.mark.parametrize(
    ("build", "count"), [(small_resnet, 6), (lambda: small_resnet(BasicBlock), 6), (small_vit, 3)]
)
@pytest.mark.parametrize("accumulation", [1, 2])
def test_losses_weights_and_statistics_are_those_without(build, count, accumulation):
    """Dropout too, whose second draw is the first one."""
    torch.manual_seed(0)
    kept = BYOL(build(), 16, projection_size=8, projection_hidden_size=16)
    again = copy.deepcopy(kept)
    assert recompute(again.online.encoder) == count
    passes = {"kept": 0, "again": 0}
    for name, learner in (("kept", kept), ("again", again)):
        layer = next(m for m in learner.online.encoder.modules() if isinstance(m, nn.Conv2d | nn.Linear))
        last = [m for m in learner.online.encoder.modules() if isinstance(m, nn.Conv2d | nn.Linear)][-1]
        assert layer is not last
        last.register_forward_hook(lambda *_, name=name: passes.update({name: passes[name] + 1}))
    losses: dict[str, list[float]] = {"kept": [], "again": []}
    for name, learner in (("kept", kept), ("again", again)):
        optimizer = torch.optim.SGD(learner.parameters(), lr=0.1)
        for step in range(3):
            for micro in range(accumulation):
                torch.manual_seed(10 * step + micro)
                images = torch.rand(8, 3, 16, 16)
                loss = learner(images) / accumulation
                loss.backward()
                losses[name].append(loss.item())
            optimizer.step()
            optimizer.zero_grad()
            learner.update_target(0.9)
    assert losses["again"] == pytest.approx(losses["kept"], rel=1e-6)
    assert passes["again"] == 2 * passes["kept"]  # else nothing was computed again
    ours, theirs = again.state_dict(), kept.state_dict()
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-6, atol=1e-6, msg=name)


def test_scoring_computes_nothing_twice_and_a_copy_is_a_network_too():
    net = small_resnet().eval()
    expected = net(torch.ones(2, 3, 16, 16))
    recompute(net)
    assert isinstance(net.layer1[0], Bottleneck)
    for one in (net, copy.deepcopy(net)):
        torch.testing.assert_close(one(torch.ones(2, 3, 16, 16)), expected, rtol=0, atol=0)


def test_a_network_may_come_twice_and_is_copied_and_saved_as_it_came():
    """As for a second run of the same network."""
    net = small_resnet()
    block, count = net.layer1[0], recompute(net)
    assert recompute(net) == count == 6
    assert type(block).__mro__.count(Recomputed) == 1
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    for other in (copy.deepcopy(net), torch.load(file, weights_only=False)):
        assert type(other.layer1[0]) is Bottleneck
        assert all(map(torch.equal, other.state_dict().values(), net.state_dict().values()))
    assert isinstance(block, Recomputed)


def test_a_network_without_blocks_is_refused():
    with pytest.raises(ConfigError, match=r"model\.recompute.*blocks"):
        recompute(ConvNet(4))


MEMORY = """
import sys, torch
from pathlib import Path
from byol.method.recompute import recompute
from byol.models.resnet import resnet
net = resnet(18, stem="small").train()
if sys.argv[1] == "again":
    recompute(net)
net(torch.rand(2, 3, 64, 64)).sum().backward()
def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
Path("/proc/self/clear_refs").write_text("5")  # the peak of importing torch is forgotten
before = peak()
net(torch.rand(24, 3, 64, 64)).sum().backward()
print(peak() - before)
"""


@pytest.mark.slow
def test_it_takes_less_memory():
    """The peak of a step of ResNet-18 over that of a small one."""
    grown = {}
    for how in ("kept", "again"):
        environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}  # what is freed goes back at once
        done = subprocess.run(
            [sys.executable, "-c", MEMORY, how],
            capture_output=True, text=True, timeout=300, env=environment,
        )  # fmt: skip
        grown[how] = int(done.stdout)
    assert 0 < grown["again"] < 0.75 * grown["kept"]

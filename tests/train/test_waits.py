"""The loop launches a step without waiting for the device, but for the one look at the loss that the step
documents.
"""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import Tiny, small_config
from torch.overrides import TorchFunctionMode

from byol.data.batches import Batches, BatchPlan, resident_batches
from byol.data.images import open_images
from byol.evaluation.online import OnlineProbe, ProbedLearner
from byol.method.byol import BYOL
from byol.method.lars import LARS, parameter_groups
from byol.train import step
from byol.train.plan import ImageFacts, plan_run
from byol.train.stopwatch import Stopwatch
from byol.world import World


class Copies(TorchFunctionMode):
    """Collects copies from the host that the host waits for. Reading a meta tensor back raises by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.made, self.waited = 0, []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        name = getattr(function, "__name__", "")
        if isinstance(result, torch.Tensor) and result.device.type == "meta":
            of_numbers = name in ("tensor", "as_tensor", "new_tensor")
            of_host = name in ("to", "copy_") and any(
                isinstance(a, torch.Tensor) and a.device.type == "cpu" for a in args
            )
            self.made += of_numbers or of_host
            if of_numbers or (of_host and not kwargs.get("non_blocking")):
                self.waited.append(name)
        return result


def training(device: torch.device, folder: Path) -> Any:
    images = torch.randint(0, 256, (24, 3, 16, 16), dtype=torch.uint8)
    source = open_images(images, labels=[0, 1] * 12)
    plan = plan_run(
        small_config(folder), ImageFacts(24, (16, 16), 3, False), World(0, 1, torch.device("cpu"))
    )
    learner = BYOL(Tiny(), 16, None, 8, 16).to(device)
    probe = OnlineProbe(learner, source, 0)
    optimizer = LARS([*parameter_groups(learner, 1e-6), *parameter_groups(probe, 1e-6)], lr=0.1)
    what = BatchPlan(0, 24, 8, 1, learner.views)
    watch, forward = Stopwatch(device), ProbedLearner(learner, probe)
    watch.follow(learner, forward, optimizer)
    batches = Batches(resident_batches(images.to(device), what), what, begin=watch.begin)
    for result in step.steps(learner, batches, optimizer, plan, forward=forward):
        watch.begin("rest")
        yield result


def test_a_step_copies_to_the_device_without_waiting(tmp_path, monkeypatch):
    """A meta tensor has no values, so every read of one raises; what goes there is recorded."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # torch has none for meta tensors
    looked = []
    monkeypatch.setattr(step, "stop_unless_finite", lambda loss, number, _: looked.append(number))
    run = training(torch.device("meta"), tmp_path)
    next(run)  # the first step may prepare what all others use
    with Copies() as copies:
        done = [result.step for result in run]
    assert done == [2, 3, 4, 5, 6]
    assert looked == [0, 1, 2, 3, 4, 5]
    assert copies.made > 20
    assert copies.waited == []


@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a GPU: torch itself tells there when the host waits"
)
def test_a_step_waits_for_a_gpu_at_its_loss_only(tmp_path, monkeypatch):
    monkeypatch.setattr(step, "stop_unless_finite", lambda loss, number, _: None)
    run = training(torch.device("cuda"), tmp_path)
    next(run)
    torch.cuda.set_sync_debug_mode("error")
    try:
        assert len(list(run)) == 5
    finally:
        torch.cuda.set_sync_debug_mode("default")

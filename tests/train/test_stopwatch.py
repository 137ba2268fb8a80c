"""What a run's time was spent on: each part gets what it took, all of them are the run's whole time, and
nothing of it changes what is computed.
"""

import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from processes import blocks
from safetensors.torch import load_file
from small_runs import Tiny, seeded, small_config, stopping, untimed
from torch import Tensor, nn

import byol
from byol.encoders.encoder import save_encoder
from byol.evaluation.online import ProbedLearner
from byol.report.record import read_record
from byol.train.config import ExtraConfig, ModelConfig, OptimConfig
from byol.train.run import pretrain  # before the clock runs: `byol.pretrain` would load it then
from byol.train.run_folder import RunFolder
from byol.train.stopwatch import PARTS, Stopwatch, to_metrics

NAPS = {"online": 0.02, "target": 0.04, "looks": 0.06}  # seconds


def spent(out: Path, line: int = -1) -> dict[str, float]:
    """Seconds by parts, as a line of metrics tells them; without such a line none."""
    lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return {part: json.loads(lines[line])[f"seconds_{part}"] for part in PARTS}


def wall(work: Callable[[], object], out: Path) -> float:
    """Seconds from the beginning of a run, or a part of one, until its last line of metrics."""
    began = time.time()
    work()
    return (out / "metrics.jsonl").stat().st_mtime - began


def test_the_parts_are_the_whole_time_of_a_run_and_each_takes_some(tmp_path, photos):
    config = small_config(tmp_path, epochs=6)
    whole = wall(lambda: pretrain(seeded(), photos, config), tmp_path)
    parts = spent(tmp_path)
    assert sum(parts.values()) == pytest.approx(whole, rel=0.05)
    assert {part for part, seconds in parts.items() if seconds == 0} == set()


class Slow(Tiny):
    """Sleeps in each of its passes: as the online network, also backward, as the target, and in looks."""

    def __init__(self) -> None:
        super().__init__()
        self.slept = dict.fromkeys(NAPS, 0.0)

    def forward(self, x: Tensor) -> Tensor:
        part = "looks" if not self.training else "online" if torch.is_grad_enabled() else "target"

        def nap(_: Tensor | None = None) -> None:
            time.sleep(NAPS[part])
            self.slept[part] += NAPS[part]

        nap()
        x = super().forward(x)
        if part == "online":
            x.register_hook(nap)
        return x

    def __deepcopy__(self, memo: dict) -> "Slow":
        """Copies count with it."""
        copy = Slow()
        copy.load_state_dict(self.state_dict())
        copy.slept = self.slept
        return copy


class Samples:
    """32 pictures, each of which takes its time."""

    NAP = 0.01

    def __len__(self) -> int:
        return 32

    def __getitem__(self, index: int) -> Tensor:
        time.sleep(self.NAP)
        return torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(index))


def test_time_is_counted_where_it_was_spent(tmp_path, monkeypatch):
    """A slow data set as waiting, slow views as views, a slow disk as saving, a slow network as itself."""
    nap, sync, synced = 0.02, os.fsync, []

    def slow_views(x: Tensor) -> tuple[Tensor, Tensor]:
        time.sleep(nap)
        return x, x + 0.1 * torch.randn(x.shape)

    def slow_sync(file: int) -> None:
        time.sleep(0.1)
        synced.append(file)
        sync(file)

    monkeypatch.setattr(os, "fsync", slow_sync)
    config = small_config(tmp_path, image_size=None, hidden_layer="output", save_every_steps=2, epochs=1)
    net = seeded(Slow)
    whole = wall(lambda: pretrain(net, Samples(), config, views=slow_views), tmp_path)
    parts, steps = spent(tmp_path), json.loads((tmp_path / "plan.json").read_text())["plan"]["total_steps"]
    least = {"waiting": 8 * steps * Samples.NAP, "views": 8 * steps * nap, **net.slept}
    least["target"] = 2 * steps * NAPS["target"]  # a look settles a network without gradient too
    least["saving"] = 0.1 * steps / 2  # a checkpoint has several files
    assert {part: (parts[part], seconds) for part, seconds in least.items() if parts[part] < seconds} == {}
    assert len(synced) > steps / 2
    assert sum(parts.values()) == pytest.approx(whole, rel=0.05)


def test_worker_processes_are_waited_for(tmp_path):
    config = small_config(tmp_path, image_size=None, hidden_layer="output", workers=1)
    pretrain(seeded(), Samples(), config, views=lambda x: (x, x + 0.1 * torch.randn(x.shape)))
    parts = spent(tmp_path)
    assert parts["waiting"] > 32 * Samples.NAP
    assert parts["views"] < parts["waiting"]


def test_a_slow_optimizer_is_counted_as_the_optimizer(tmp_path, photos):
    class Slowly(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            time.sleep(0.05)
            return super().step(closure)

    loop = byol.prepare_loop(seeded(), photos, small_config(tmp_path))
    optimizer = Slowly([p for p in loop.learner.parameters() if p.requires_grad], lr=0.1)
    watch, forward = Stopwatch(), ProbedLearner(loop.learner)
    watch.follow(loop.learner, forward, optimizer)
    for _ in byol.steps(loop.learner, loop.batches, optimizer, loop.plan, forward=forward):
        watch.begin("rest")
    assert watch.seconds()["optimizer"] >= 0.05 * loop.plan.total_steps


def test_a_run_that_was_stopped_and_broke_off_has_the_time_of_all_its_parts(tmp_path, arrays):
    """What was done in vain too; and its metrics are otherwise those of a run that nobody touched."""

    class Breaks(Tiny):
        left = 15

        def forward(self, x: Tensor) -> Tensor:
            self.left -= self.training and torch.is_grad_enabled()
            if self.left == 0:
                raise RuntimeError("the GPU has fallen off the bus")
            return super().forward(x)

    config = small_config(tmp_path / "whole", save_every_steps=4, log_every_steps=1, epochs=4)
    pretrain(seeded(), arrays, config)
    config = replace(config, out=str(tmp_path / "parts"))
    ends = []
    parts: list[tuple[nn.Module, type[Exception] | None]] = [
        (stopping(seeded(), 9), byol.Stopped),
        (seeded(Breaks), RuntimeError),
        (stopping(seeded(), 12), byol.Stopped),
        (seeded(), None),
    ]
    for net, failure in parts:

        def part(net: nn.Module = net, failure: Any = failure) -> None:
            if failure is None:
                pretrain(net, arrays, config)
            else:
                with pytest.raises(failure):
                    pretrain(net, arrays, config)

        seconds = wall(part, tmp_path / "parts")
        ends.append((seconds, sum(spent(tmp_path / "parts").values())))
    walls, sums = zip(*ends, strict=True)
    assert list(sums) == pytest.approx(np.cumsum(walls).tolist(), rel=0.05)
    whole, resumed = (
        [untimed(json.loads(line)) for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()]
        for run in ("whole", "parts")
    )
    assert whole == resumed


def test_the_last_save_of_a_run_is_in_its_time_and_in_that_of_a_longer_one(tmp_path, arrays, monkeypatch):
    """It comes after the last line of metrics."""
    nap, folder = 0.5, RunFolder(tmp_path)

    def slow_save(*words: Any) -> None:
        time.sleep(nap)
        save_encoder(*words)

    monkeypatch.setattr("byol.train.run.save_encoder", slow_save)
    config, walls = small_config(tmp_path), []
    for epochs in (2, 4):
        began = time.time()
        pretrain(seeded(), arrays, replace(config, epochs=epochs))
        walls.append(folder.time.stat().st_mtime - began)
        parts = read_record(str(tmp_path)).spent
        assert parts["saving"] > len(walls) * nap
        assert sum(parts.values()) == pytest.approx(sum(walls), rel=0.05)
    for damaged in ("", "[]", json.dumps(to_metrics(parts) | {"seconds_rest": 10**400})):
        folder.time.write_text(damaged)
        assert read_record(str(tmp_path)).spent == spent(tmp_path)


def squeezed() -> nn.Module:
    """Blocks that can be computed again, behind one layer that cannot."""
    torch.manual_seed(0)
    return blocks(3, None)


def compiled() -> nn.Module:
    net = squeezed()
    net.compile(backend="eager")
    return net


WAYS: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "gradient accumulation": (seeded, {"optim": OptimConfig(accumulation=2)}),
    "extra views": (seeded, {"extra": ExtraConfig(local=1, cutout=1, targets=1)}),
    "recomputed activations": (
        squeezed,
        {"model": ModelConfig(projection_size=8, projection_hidden_size=16, recompute=True)},
    ),
    "a compiled network": (compiled, {"hidden_layer": "output"}),
    "bf16": (seeded, {"precision": "bf16"}),
}


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch's compiler looks at it
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("way", WAYS)
def test_a_run_whose_time_is_told_computes_what_a_bare_loop_does(way, tmp_path, photos):
    """Which has no stopwatch: bit for bit."""
    net_of, changes = WAYS[way]
    config = small_config(tmp_path / "run", **changes)
    run = pretrain(net_of(), photos, config)
    loop = byol.prepare_loop(net_of(), photos, config)
    assert loop.plan == run.plan
    for _ in byol.steps(loop.learner, loop.batches, loop.optimizer, loop.plan):
        pass
    newest = max((tmp_path / "run" / "checkpoints").glob("step-*"))
    theirs, ours = load_file(newest / "state.safetensors"), ProbedLearner(loop.learner).state_dict()
    assert len(ours) > 20
    assert [name for name, value in ours.items() if not torch.equal(value, theirs[name])] == []


class Gpu:
    """A device that the host runs ahead of, and its events; neither can be waited for."""

    def __init__(self) -> None:
        self.host = self.busy_until = 0.0  # seconds

    def launch(self, seconds: float) -> None:
        """Work of so many seconds, which the host does not wait for."""
        self.busy_until = max(self.busy_until, self.host) + seconds

    def event(self, enable_timing: bool) -> Any:
        assert enable_timing
        return Event(self)


class Event:
    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu

    def record(self, stream: object) -> None:
        self.at = max(self.gpu.busy_until, self.gpu.host)

    def query(self) -> bool:
        return self.gpu.host >= self.at

    def elapsed_time(self, end: "Event") -> float:
        assert self.query()
        assert end.query()
        return 1000 * (end.at - self.at)


def test_on_a_gpu_its_work_counts_where_it_was_launched_and_waiting_where_it_stood_still(monkeypatch):
    gpu = Gpu()
    monkeypatch.setattr(torch.cuda, "Event", gpu.event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "its stream")
    watch = Stopwatch(torch.device("cuda"), started=-7.0, clock=lambda: gpu.host)
    for images_take in (3.0, 10.0):  # less than what is left to compute, and more
        watch.begin("waiting")
        gpu.host += images_take
        watch.begin("views")
        gpu.launch(1.0)
        watch.begin("online")
        gpu.launch(4.0)
        watch.begin("target")
        gpu.launch(2.0)
        assert sum(watch.seconds().values()) == pytest.approx(7.0 + gpu.host)  # also while it is behind
    watch.begin("rest")
    gpu.host += 100.0
    watch.begin("rest")
    # It stood still for the first 3 seconds, and for 3 of the 10 after the 7 that it computed.
    expected = {"waiting": 6.0, "views": 2.0, "online": 8.0, "target": 4.0, "rest": 7.0 + 93.0}
    assert {part: seconds for part, seconds in watch.seconds().items() if seconds} == pytest.approx(expected)

"""Several processes, each started as torchrun does, by a server that has imported torch for all of them."""

import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
from torch import Tensor, nn

from byol.cli import main

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["byol.commands.train", "byol.evaluation.knn", "rich.progress"])
FLAGS = {
    "encoder": "processes:small", "image-size": 12, "batch-size": 16, "epochs": 6, "precision": "fp32",
    "device": "cpu", "workers": 0, "model.projection-size": 8, "model.projection-hidden-size": 16,
    "optim.name": "lars", "optim.base-lr": 0.2, "knn.times": 1, "knn.k": 3, "log-every-steps": 1,
    "on-collapse": "warn",
}  # fmt: skip


class Small(nn.Module):
    """A convolution and BatchNorm. On rank 1 something happens in one of its training passes, two a step."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        pool = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.layers = nn.Sequential(nn.Conv2d(channels, 6, 3, 2, bias=False), nn.BatchNorm2d(6), pool)
        what, _, at_pass = os.environ.get("FAULT", "").partition(" ")
        again = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
        self.fault = what if os.environ.get("RANK") == "1" and not again else ""
        self.left = int(at_pass or 0)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and torch.is_grad_enabled():
            self.left -= 1
            if self.fault and self.left == 0:
                if self.fault == "nan":
                    return self.layers(x) * torch.nan
                if self.fault == "slope":  # the root of 0 adds nothing, and its slope is not finite
                    x = self.layers(x)
                    return x + (0 * x).abs().sqrt()
                if self.fault == "failure":
                    raise RuntimeError("the second GPU has fallen off the bus")
                os.kill(os.getpid(), signal.Signals[self.fault])
        return self.layers(x)


def small(channels: int, image_size: object) -> nn.Module:
    return Small(channels)


class Block(nn.Module):
    """A residual block."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(6, 6, 3, 1, 1, bias=False), nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.relu(self.bn(self.conv(x)))


def blocks(channels: int, image_size: object) -> nn.Module:
    """A network of two blocks that can be computed again for their gradient."""
    stem = nn.Conv2d(channels, 6, 3, 2)
    return nn.Sequential(stem, nn.Sequential(Block(), Block()), nn.AdaptiveAvgPool2d(2), nn.Flatten())


def words(images: Path, out: Path, **changes: object) -> list[str]:
    """The words of a small run: `optim__name` is --optim.name."""
    changed = {name.replace("__", ".").replace("_", "-"): value for name, value in changes.items()}
    flags = [word for name, value in (FLAGS | changed).items() for word in (f"--{name}", str(value))]
    return ["train", str(images), "--out", str(out), *flags]


@dataclass
class Started:
    """Processes that share a log."""

    processes: list[BaseProcess]
    log: Path

    def codes(self, seconds: float = 400) -> list[int | None]:
        """Their exit codes; None of one that has not ended by then."""
        limit = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0, limit - time.monotonic()))
        return [process.exitcode for process in self.processes]

    def said(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")


@contextmanager
def started(
    count: int, log: Path, work: Callable[..., object], *arguments: object, **environment: str
) -> Iterator[Started]:
    """Processes that call `work`, whose number is their exit code. None outlives the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    world |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes: list[BaseProcess] = []
    try:
        for rank in range(count):
            own = world | {"RANK": str(rank), "LOCAL_RANK": str(rank)} | environment
            process = SERVER.Process(target=one, args=(own, log, work, arguments))
            process.start()
            processes.append(process)
        yield Started(processes, log)
    finally:
        for process in processes:
            process.kill()
            process.join()


def one(environment: dict[str, str], log: Path, work: Callable[..., object], arguments: tuple) -> None:
    """What one of the processes does."""
    os.environ.update(environment)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    torch.set_num_threads(1)
    sys.exit(work(*arguments))


def run_byol(count: int, words: list[str], log: Path, expected: int = 0, **environment: str) -> str:
    """Run `byol` in so many processes, which all end with a code. Returns what they said."""
    with started(count, log, main, words, **environment) as running:
        codes, said = running.codes(), running.said()
    assert codes == [expected] * count, said
    return said

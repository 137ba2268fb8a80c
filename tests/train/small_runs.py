"""Small runs on real files: every test here trains a real network, only a tiny one."""

import os
import signal
from pathlib import Path

import torch
from torch import Tensor, nn

from byol import TrainConfig
from byol.train.config import DataConfig, KnnConfig, ModelConfig


class Tiny(nn.Module):
    """Two convolutions with BatchNorm and dropout: everything that a resume could get wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Dropout2d(0.2),
            nn.Conv2d(8, 12, 3, 2, 1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class StopsItself(Tiny):
    """Sends its own process a signal when its training passes reach a number."""

    def __init__(self, at_pass: int, number: signal.Signals = signal.SIGTERM) -> None:
        super().__init__()
        self.left, self.number = at_pass, number

    def forward(self, x: Tensor) -> Tensor:
        if self.training and torch.is_grad_enabled():
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), self.number)
        return super().forward(x)

    def __deepcopy__(self, memo: dict) -> "Tiny":
        copy = Tiny()
        copy.load_state_dict(self.state_dict())
        return copy


def stopping(net: nn.Module, at_pass: int) -> nn.Module:
    """The network, which sends its own process SIGTERM in one of its training passes."""
    passes = iter(range(1, 10**9))

    def stop(module: nn.Module, inputs: object) -> None:
        if module.training and torch.is_grad_enabled() and next(passes) == at_pass:
            os.kill(os.getpid(), signal.SIGTERM)

    net.register_forward_pre_hook(stop)
    return net


def seeded(net: type[nn.Module] = Tiny, *args: object) -> nn.Module:
    torch.manual_seed(0)
    return net(*args)


def untimed(line: dict) -> dict:
    """A line of metrics without what the clock says."""
    return {
        name: value
        for name, value in line.items()
        if name not in ("images_per_second", "data_wait") and not name.startswith("seconds_")
    }


def small_config(out: Path, **changes: object) -> TrainConfig:
    """A run of a few steps: 16 pixels, batches of 8, fp32."""
    settings: dict = {
        "image_size": 16,
        "batch_size": 8,
        "epochs": 2,
        "precision": "fp32",
        "device": "cpu",
        "workers": 0,
        "log_every_steps": 2,
        "model": ModelConfig(projection_size=8, projection_hidden_size=16),
        "knn": KnnConfig(hold_out_share=0.1, times=2, k=3),
        "data": DataConfig(),
    }
    return TrainConfig(out=str(out), **{**settings, **changes})

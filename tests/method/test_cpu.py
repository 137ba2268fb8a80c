"""What torch computes wrong on a CPU is computed another way."""

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn

import byol
from byol.errors import ConfigError
from byol.method.cpu import laid_out, wrong_in_bf16
from byol.train.config import KnnConfig, ModelConfig
from byol.world import World


def halved(times: int) -> nn.Module:
    """A network that halves a map several times."""
    layers = [nn.Conv2d(3 if n == 0 else 16, 16, 3, stride=2, padding=1) for n in range(times)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def convolution(channels: int, kernel: int, stride: int, padding: int, *sides: int, groups: int = 1) -> Any:
    """A convolution of two or three dimensions, and a map for it."""
    torch.manual_seed(0)
    kind = nn.Conv2d if len(sides) == 2 else nn.Conv3d
    return kind(channels, channels, kernel, stride, padding, groups=groups), torch.randn(8, channels, *sides)


RIGHT = [
    (16, 5, 2, 2, 2, 2), (16, 5, 4, 2, 4, 4), (16, 5, 4, 1, 8, 8), (16, 5, 2, 1, 3, 3), (16, 1, 2, 0, 1, 1),
    (256, 5, 1, 2, 2, 2), (256, 7, 1, 3, 3, 3), (16, 3, 1, 1, 3, 3, 3), (16, 1, 2, 0, 1, 1, 1),
]  # fmt: skip
WRONG = [
    (16, 5, 2, 2, 1, 1), (16, 5, 4, 2, 3, 3), (16, 5, 4, 2, 2, 2), (16, 3, 2, 1, 4, 1), (256, 5, 1, 2, 1, 4),
    (256, 9, 1, 4, 3, 4), (16, 3, 1, 1, 2, 5, 5), (16, 5, 1, 2, 4, 8, 8), (16, 3, 2, 1, 5, 1, 1),
]  # fmt: skip


@pytest.mark.parametrize("sizes", RIGHT, ids=str)
def test_what_is_not_named_has_the_gradient_of_fp32(sizes):
    has_the_gradient_of_fp32(*convolution(*sizes))


def test_channels_convolved_alone_are_not_named_for_their_padding():
    has_the_gradient_of_fp32(*convolution(192, 7, 1, 3, 2, 2, groups=192))


def has_the_gradient_of_fp32(layer, x):
    assert wrong_in_bf16(layer, x) is None
    (expected,) = torch.autograd.grad(layer(x).square().mean(), [layer.weight])
    with torch.autocast("cpu", torch.bfloat16):
        loss = layer(x).float().square().mean()
    (found,) = torch.autograd.grad(loss, [layer.weight])
    torch.testing.assert_close(found, expected, rtol=0.1, atol=0.03 * float(expected.abs().max()))


@pytest.mark.parametrize("sizes", WRONG, ids=str)
def test_a_map_small_beside_the_kernel_is_named_where_it_is_padded(sizes):
    layer, x = convolution(*sizes)
    assert wrong_in_bf16(nn.Sequential(nn.ReLU(), layer), x) == "1"
    assert not layer._forward_pre_hooks


def test_padding_by_name_counts():
    layer = nn.Conv2d(16, 16, 9, padding="same")
    assert wrong_in_bf16(layer, torch.zeros(2, 16, 3, 3)) == ""
    assert wrong_in_bf16(layer, torch.zeros(2, 16, 4, 4)) is None
    assert wrong_in_bf16(nn.Conv2d(16, 16, 2, 2, padding="valid"), torch.zeros(2, 16, 2, 2)) is None


STRIDED = """
import torch
from torch import nn
from byol.method.cpu import laid_out

for _ in range(200):
    net = laid_out(nn.Sequential(nn.Conv2d(3, 48, 1, 2), nn.BatchNorm2d(48)))
    net(torch.rand(8, 3, 32, 32)).square().mean().backward()
"""


def test_a_cpu_without_avx512_trains_a_pointwise_convolution_that_strides_over_an_image():
    """torch writes past its memory there, where such a network is laid out as the others are."""
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = subprocess.run([sys.executable, "-c", STRIDED], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_other_networks_are_laid_out_channels_last():
    for net in (nn.Conv2d(3, 8, 3, 2), nn.Conv2d(8, 8, 1, 2), nn.Conv2d(3, 8, 1)):
        assert laid_out(nn.Sequential(net, nn.Conv2d(8, 8, 3)))[1].weight.is_contiguous(
            memory_format=torch.channels_last
        )


def test_a_layer_that_is_given_its_map_by_name_is_looked_at_too():
    class Named(nn.Conv2d):
        def __call__(self, x):
            return super().__call__(input=x)

    net = nn.Sequential(Named(3, 4, 3, stride=2, padding=1))
    assert wrong_in_bf16(net, torch.zeros(2, 3, 8, 8)) is None
    assert wrong_in_bf16(net, torch.zeros(2, 3, 1, 1)) == "0"


def config(out, **changes):
    more = {"image_size": 16, "batch_size": 8, "epochs": 1, "device": "cpu", "workers": 0}
    heads = ModelConfig(projection_size=8, projection_hidden_size=16)
    return byol.TrainConfig(str(out), model=heads, knn=KnnConfig(hold_out_share=0.0), **more, **changes)


def test_such_a_network_is_trained_in_fp32_unless_its_views_are_large_enough(tmp_path, monkeypatch):
    monkeypatch.setattr(World, "default_precision", lambda self: "bf16")  # a fast CPU's
    images = torch.randint(256, (24, 3, 16, 16), dtype=torch.uint8).numpy()
    assert byol.prepare_loop(halved(4), images, config(tmp_path / "a")).plan.precision == "bf16"
    assert byol.prepare_loop(halved(5), images, config(tmp_path / "b")).plan.precision == "fp32"


def test_bf16_that_was_asked_for_is_refused_for_such_a_network(tmp_path):
    images = torch.randint(256, (24, 3, 16, 16), dtype=torch.uint8).numpy()
    with pytest.raises(ConfigError, match=r"come to 4.*--precision fp32.*--image-size"):
        byol.prepare_loop(halved(5), images, config(tmp_path / "c", precision="bf16"))

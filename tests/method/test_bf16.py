"""Networks that torch does not train right in bf16 on a CPU are trained in fp32."""

import pytest
import torch
from torch import nn

import byol
from byol.errors import ConfigError
from byol.method.bf16 import wrong_in_bf16
from byol.train.config import KnnConfig, ModelConfig
from byol.world import World


def halved(times: int) -> nn.Module:
    """A network that halves a map several times."""
    layers = [nn.Conv2d(3 if n == 0 else 16, 16, 3, stride=2, padding=1) for n in range(times)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def convolution(side: int, stride: int, padding: int, kernel: int = 5) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    return nn.Conv2d(16, 16, kernel, stride, padding), torch.randn(8, 16, side, side)


@pytest.mark.parametrize(
    ("side", "stride", "padding", "kernel"),
    [(2, 2, 2, 5), (4, 4, 2, 5), (8, 4, 1, 5), (1, 1, 2, 5), (3, 2, 1, 5), (1, 2, 0, 1)],
)
def test_what_is_not_named_has_the_gradient_of_fp32(side, stride, padding, kernel):
    layer, x = convolution(side, stride, padding, kernel)
    assert wrong_in_bf16(layer, x) is None
    (expected,) = torch.autograd.grad(layer(x).square().mean(), [layer.weight])
    with torch.autocast("cpu", torch.bfloat16):
        loss = layer(x).float().square().mean()
    (found,) = torch.autograd.grad(loss, [layer.weight])
    torch.testing.assert_close(found, expected, rtol=0.1, atol=0.03 * float(expected.abs().max()))


@pytest.mark.parametrize(("side", "stride", "padding"), [(1, 2, 2), (3, 4, 2), (2, 4, 2)])
def test_a_map_smaller_than_the_stride_is_named_where_it_is_padded(side, stride, padding):
    layer, x = convolution(side, stride, padding)
    assert wrong_in_bf16(nn.Sequential(nn.ReLU(), layer), x) == "1"
    assert not layer._forward_pre_hooks


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

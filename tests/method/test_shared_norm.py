"""Two processes' BatchNorm is torch's over their images in one batch."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed as dist, nn

from byol.errors import ConfigError
from byol.method.shared_norm import SharedBatchNorm, separate, share_statistics


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.BatchNorm2d(6, affine=False, momentum=None),
        nn.Flatten(),
        nn.Linear(96, 5),
        nn.BatchNorm1d(5, track_running_stats=False),
    ).double()


def results(net: nn.Module, x: Tensor, weights: Tensor, bf16: bool) -> dict[str, Tensor]:
    """What two passes give: outputs, gradients of the input, of weights, and buffers."""
    if bf16:
        net, x = net.float(), x.float()
    x.requires_grad_()
    for _ in range(2):
        net.zero_grad()
        x.grad = None
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            output = net(x)
        (output * weights).sum().backward()
    found = {"output": output.detach(), "input": x.grad}
    found |= {name: p.grad for name, p in net.named_parameters()}
    return found | dict(net.named_buffers())


def one_process(rank: int, folder: str, bf16: bool) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    x, weights = torch.load(f"{folder}/batch.pt")
    part = slice(0, 3) if rank == 0 else slice(3, 8)  # of two sizes
    net = network()
    share_statistics(net)
    torch.save(results(net, x[part].clone(), weights[part], bf16), f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize(("bf16", "close"), [(False, 1e-9), (True, 0.05)])
def test_two_processes_give_what_batchnorm_gives_of_the_whole_batch(tmp_path: Path, bf16: bool, close: float):
    torch.manual_seed(1)
    x, weights = torch.randn(8, 3, 6, 6).double() * 3 + 5, torch.randn(8, 5).double()
    torch.save((x, weights), tmp_path / "batch.pt")
    torch.multiprocessing.spawn(one_process, args=(str(tmp_path), bf16), nprocs=2)
    parts = [torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1)]
    expected = results(network(), x.clone(), weights, bf16)
    assert expected["1.num_batches_tracked"] == 2
    for name, value in expected.items():
        if name in ("output", "input"):
            ours = torch.cat([part[name] for part in parts])
        elif "running" in name or "num" in name:
            torch.testing.assert_close(parts[0][name], parts[1][name], rtol=0, atol=0)
            ours = parts[0][name]
        else:
            ours = parts[0][name] + parts[1][name]  # of the sum over all images
        far = close * max(1.0, float(value.abs().max()))
        torch.testing.assert_close(ours, value, rtol=0, atol=far, msg=f"{name} differs")


def test_the_layers_stay_the_same_objects_and_alone_are_plain_batchnorm():
    net, x = network(), torch.randn(4, 3, 6, 6).double()
    layers, expected = [*net], network()(x)
    share_statistics(net)
    assert [*net] == layers
    assert sum(isinstance(layer, SharedBatchNorm) for layer in net) == 3
    torch.testing.assert_close(net(x), expected, rtol=0, atol=0)
    separate(net)
    assert not any(isinstance(layer, SharedBatchNorm) for layer in net)
    torch.testing.assert_close(net(x), expected, rtol=0, atol=0)


def test_a_batchnorm_of_another_kind_is_refused_by_its_name():
    """timm has some whose forward pass does more, which would be lost."""

    class WithActivation(nn.BatchNorm2d):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input).relu()

    with pytest.raises(ConfigError, match=r"1 is a WithActivation"):
        share_statistics(nn.Sequential(nn.Conv2d(3, 3, 3), WithActivation(3)))

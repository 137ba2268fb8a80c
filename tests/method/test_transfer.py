import pytest
import torch

from byol.method.transfer import to_device


def test_copies_to_a_gpu_come_from_page_locked_memory(monkeypatch):
    """Only such a copy lets the host go on; without a GPU what is asked of torch is recorded."""
    asked = []
    monkeypatch.setattr(
        torch.Tensor, "pin_memory", lambda self: asked.append(("pin", self.is_contiguous())) or self
    )
    monkeypatch.setattr(
        torch.Tensor,
        "to",
        lambda self, device, non_blocking: asked.append((str(device), non_blocking)) or self,
    )
    to_device(torch.zeros(2, 1).expand(2, 3), torch.device("cuda"))  # torch cannot pin what overlaps itself
    assert asked == [("pin", True), ("cuda", True)]


def test_a_tensor_that_stays_on_the_cpu_is_not_copied():
    x = torch.arange(3)
    assert to_device(x, torch.device("cpu")) is x


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gets_the_values():
    x = torch.arange(6).view(2, 3).t()
    assert torch.equal(to_device(x, torch.device("cuda")).cpu(), x)

"""From the host to a device, without waiting for the device."""

import torch
from torch import Tensor


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """A host tensor on a device. For a GPU it is copied from page-locked memory: from any other the host waits its turn.

    torch keeps the page-locked block until the copy is done, and then for the next one.
    """
    return (x.contiguous().pin_memory() if device.type == "cuda" else x).to(device, non_blocking=True)

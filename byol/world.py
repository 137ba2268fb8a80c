"""The processes and devices of a run. One process on one device is a world of one."""

import logging
import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Literal

import torch

from byol.errors import ByolError, ConfigError
from byol.machine import available_memory, bf16_pays, settle

logger = logging.getLogger("byol")
Precision = Literal["bf16", "fp32"]


@dataclass(frozen=True)
class World:
    """Where this process stands: its rank among `size` processes and the device it works on.

    As a context manager it leaves the other processes at the end.
    """

    rank: int
    size: int
    device: torch.device

    @classmethod
    def join(cls, device: str | None = None, *, alone: bool = False) -> "World":
        """Take a place among the processes that torchrun started; without torchrun that is a world of one.

        `device` None picks the best there is; of several GPUs each process takes its own. The processes only
        wait for one another, over gloo. Raises ConfigError for a device that is not there, when the
        processes cannot find each other, and with `alone` when there are several: each would do all the work.
        """
        words = os.environ.get("WORLD_SIZE", "1")
        if not words.isdecimal() or int(words) < 1:
            raise ConfigError(
                f"WORLD_SIZE is {words!r}; expected the number of processes. Unset it to use one."
            )
        size = int(words)
        if alone and size > 1:
            raise ConfigError(
                f"WORLD_SIZE is {size}, but this works in one process for now. Start it without torchrun, as "
                "plain `byol train` or `byol evaluate`."
            )
        chosen = pick_device(device)
        if chosen.type == "cpu":
            settle()
        if size == 1:
            return cls(0, 1, chosen)
        if chosen.type == "cuda" and chosen.index is None:
            chosen = pick_device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}")
        try:
            torch.distributed.init_process_group("gloo", timeout=timedelta(days=7))  # for the slowest
        except (ValueError, RuntimeError) as failure:
            raise ConfigError(
                f"WORLD_SIZE is {size}, but the processes do not meet: {failure}. Start them by torchrun."
            ) from failure
        return cls(torch.distributed.get_rank(), size, chosen)

    def __enter__(self) -> "World":
        return self

    def __exit__(self, *_: object) -> None:
        if self.size > 1:
            torch.distributed.destroy_process_group()

    def wait(self) -> None:
        """Wait until every process is here. Raises ByolError when one of them has ended."""
        if self.size > 1:
            try:
                torch.distributed.barrier()
            except RuntimeError as failure:
                raise ByolError(
                    f"Another of the {self.size} processes has failed; what it said is the reason."
                ) from failure

    def default_precision(self) -> Precision:
        """bf16 where a GPU has it, or a CPU multiplies it clearly faster than fp32; else fp32."""
        if self.device.type == "cuda":
            return "bf16" if torch.cuda.get_device_capability(self.device)[0] >= 8 else "fp32"
        return "bf16" if self.device.type == "cpu" and bf16_pays() else "fp32"

    def free_memory(self) -> int:
        """Bytes that are free on the device now."""
        return torch.cuda.mem_get_info(self.device)[0] if self.device.type == "cuda" else available_memory()

    def describe(self) -> str:
        """The hardware in words, for people and logs."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        name = torch.cpu.get_capabilities().get("cpu_name", "CPU")
        return f"{torch.get_num_threads()} threads of a {name}".strip()


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """bf16 arithmetic for convolutions and products; weights, loss and EMA stay float32."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def pick_device(device: str | None) -> torch.device:
    """The device a name means; None is the GPU when torch can use one, else the CPU."""
    if device is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        if Path("/proc/driver/nvidia/version").exists():
            logger.warning(
                "This machine has an NVIDIA driver, but torch cannot use it (too old for torch %s?): "
                "running on the CPU.",
                torch.__version__,
            )
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
        there = chosen.type in ("cpu", "cuda", "mps")
    except (RuntimeError, AssertionError, NotImplementedError):  # torch raises any of them
        there = False
    if not there:
        raise ConfigError(
            f"device is {device!r}, which torch {torch.__version__} does not find here. Expected cpu, cuda, "
            "cuda:N (counted from 0) or mps; leave it out to use the best there is."
        )
    return chosen

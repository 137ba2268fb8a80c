"""The processes and devices of a run. One process on one device is a world of one."""

import ctypes
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Literal

import torch

from byol.errors import ByolError, ConfigError

logger = logging.getLogger("byol")
Precision = Literal["bf16", "fp32"]
CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class World:
    """Where this process stands: its rank among `size` processes and the device it works on."""

    rank: int
    size: int
    device: torch.device

    @classmethod
    def join(cls, device: str | None = None) -> "World":
        """Take a place in the world; `device` None picks the best one there is.

        Raises ConfigError for a device that is not there, and for several processes: each would train apart in silence.
        """
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size > 1:
            raise ConfigError(
                f"WORLD_SIZE is {size}, but a run uses one process for now. Start it without torchrun, with plain `byol train`."
            )
        chosen = pick_device(device)
        if chosen.type == "cpu":
            keep_freed_memory()
        return cls(rank=0, size=1, device=chosen)

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
        """bf16 where the hardware multiplies it natively and, on a CPU, faster than fp32; else fp32."""
        if self.device.type == "cuda":
            return "bf16" if torch.cuda.get_device_capability(self.device)[0] >= 8 else "fp32"
        if self.device.type == "cpu":
            has = torch.cpu.get_capabilities()
            native = has.get("amx_bf16") or has.get("avx512_bf16") or has.get("bf16")
            return (
                "bf16"
                if native and product_seconds(torch.bfloat16) < product_seconds(torch.float32)
                else "fp32"
            )
        return "fp32"

    def free_memory(self) -> int:
        """Bytes that are free on the device now."""
        if self.device.type == "cuda":
            return torch.cuda.mem_get_info(self.device)[0]
        return available_memory()

    def describe(self) -> str:
        """The hardware in words, for people and logs."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        return f"{torch.get_num_threads()} threads of a {torch.cpu.get_capabilities().get('cpu_name', 'CPU')}".strip()


def available_memory() -> int:
    """Bytes of the machine's memory that this process may still take, within the limits of a container or a batch job.

    What the system keeps of files it has read counts as available: it gives that up when asked. Where the system does not tell
    (macOS), half of all memory.
    """
    try:
        available = 1024 * numbers_in(Path("/proc/meminfo"))["MemAvailable:"]
        groups = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    except (OSError, KeyError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    rooms = [available]
    for _, controllers, name in groups:
        if controllers in ("", "memory"):  # version 2 of control groups, and 1
            top = CGROUPS / controllers
            place = top / name.lstrip("/")
            rooms += [
                left
                for folder in (place, *place.parents)
                if folder.is_relative_to(top) and (left := room(folder)) is not None
            ]
    return max(0, min(rooms))


def room(group: Path) -> int | None:
    """Bytes that a control group leaves, with what it keeps of files counted as free; None when it has no limit."""
    files = ("memory.max", "memory.current", "inactive_file"), (
        "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file",
    )  # fmt: skip
    for limit, used, kept in files:
        try:
            most, taken = (int((group / name).read_text()) for name in (limit, used))
            return most - taken + numbers_in(group / "memory.stat").get(kept, 0)
        except (OSError, ValueError):  # not there, or "max"
            continue
    return None


def numbers_in(file: Path) -> dict[str, int]:
    """The numbers in a file of the kernel's, a name and a number a line."""
    lines = (line.split() for line in file.read_text().splitlines())
    return {words[0]: int(words[1]) for words in lines if len(words) > 1 and words[1].isdecimal()}


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """bf16 arithmetic for convolutions and products; weights, loss and EMA stay float32."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


@contextmanager
def meeting(device: str | None = None) -> Iterator[World]:
    """A world of all the processes that torchrun started, for as long as the block lasts; without torchrun a world of one.

    On GPUs each process has its own. They only wait for one another, over gloo. Raises ConfigError for a device that is not
    there, or when the processes cannot find each other.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    chosen = pick_device(device)
    if size == 1:
        yield World(0, 1, chosen)
        return
    if chosen.type == "cuda" and chosen.index is None:
        chosen = pick_device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}")
    try:
        torch.distributed.init_process_group("gloo", timeout=timedelta(days=7))  # the slowest may take long
    except (ValueError, RuntimeError) as failure:
        raise ConfigError(
            f"WORLD_SIZE is {size}, but the processes do not meet: {failure}. Start them by torchrun."
        ) from failure
    try:
        yield World(torch.distributed.get_rank(), size, chosen)
    finally:
        torch.distributed.destroy_process_group()


def product_seconds(dtype: torch.dtype, size: int = 768, repeats: int = 7) -> float:
    """Seconds of a matrix product on the CPU, the best of several: some CPUs have bf16 and multiply it at half the speed."""
    matrix = torch.ones(size, size, dtype=dtype)
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        torch.mm(matrix, matrix)
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def keep_freed_memory() -> None:
    """Have the C library keep freed memory for the next step instead of giving it back to the operating system.

    By default glibc unmaps every large tensor that is freed, and the next one is mapped page by page, zeroed by the
    kernel: a fifth of a CPU step's time. The memory a process needs at most is the same.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc has it, musl does not
    if mallopt is not None:
        mallopt(-1, -1)  # M_TRIM_THRESHOLD: never shrink the heap
        mallopt(-4, 0)  # M_MMAP_MAX: no memory maps of its own for large blocks


def pick_device(device: str | None) -> torch.device:
    """The device a name means; None is the GPU when torch can use one, else the CPU."""
    if device is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        if Path("/proc/driver/nvidia/version").exists():
            logger.warning(
                "This machine has an NVIDIA driver, but torch cannot use it (too old for torch %s?): running on the CPU.",
                torch.__version__,
            )
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as failure:
        raise ConfigError(f"device is {device!r}; expected cpu, cuda, cuda:N or mps.") from failure
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(chosen.type, False):
        raise ConfigError(
            f"device is {device!r}, but torch {torch.__version__} finds none here. Leave --device out to use the CPU."
        )
    if chosen.type == "cuda" and chosen.index is not None and chosen.index >= torch.cuda.device_count():
        raise ConfigError(
            f"device is {device!r}, but there are {torch.cuda.device_count()} CUDA devices (counted from 0)."
        )
    return chosen

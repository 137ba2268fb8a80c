"""What this machine leaves to the process: memory, cores, and the arithmetic that is fast on them."""

import ctypes
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch

CGROUPS = Path("/sys/fs/cgroup")
# Of fp32's time. A step casts a lot besides, so bf16 that multiplies only a little faster does not pay.
CLEARLY = 0.75


def available_memory() -> int:
    """Bytes of memory that this process may still take, within the limits of a container or a batch job.

    What the system keeps of files it has read counts as available: it gives that up when asked. Where the
    system does not tell (macOS), half of all memory.
    """
    try:
        available = 1024 * numbers_in(Path("/proc/meminfo"))["MemAvailable:"]
    except (OSError, KeyError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return int(max(0, min([available, *limits("memory", memory_left)])))


def usable_cores() -> int:
    """Cores this process may use: those it is bound to, and no more than a container's limit on CPU time."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return int(max(1, min([bound, *limits("cpu", cores_allowed)])))


def limits(controller: str, limit: Callable[[Path], float]) -> Iterator[float]:
    """What the control groups (version 1 or 2) that this process is in allow it of memory or cpu."""
    try:
        lines = read(Path("/proc/self/cgroup")).splitlines()
    except OSError:  # another system than Linux
        return
    for _, controllers, name in (line.split(":", 2) for line in lines):
        if controllers == "" or controller in controllers.split(","):
            top = CGROUPS / controller if controllers else CGROUPS
            place = top / name.lstrip("/")
            for group in (folder for folder in (place, *place.parents) if folder.is_relative_to(top)):
                with suppress(OSError, ValueError):  # it has none: no such file, or "max" in it
                    yield limit(group)


def memory_left(group: Path) -> int:
    """Bytes that a control group leaves, with what it keeps of files counted as free."""
    if (group / "memory.max").exists():
        names = ("memory.max", "memory.current", "inactive_file")
    else:
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    most, taken = (int(read(group / name)) for name in names[:2])
    return most - taken + numbers_in(group / "memory.stat").get(names[2], 0)


def cores_allowed(group: Path) -> float:
    """How many cores' time a control group may use."""
    if (group / "cpu.max").exists():
        quota, period = map(int, read(group / "cpu.max").split())
    else:
        quota, period = (int(read(group / f"cpu.cfs_{name}_us")) for name in ("quota", "period"))
    return quota / period if quota > 0 else float("inf")


def numbers_in(file: Path) -> dict[str, int]:
    """The numbers in a file of the kernel's, a name and a number a line."""
    lines = (line.split() for line in read(file).splitlines())
    return {words[0]: int(words[1]) for words in lines if len(words) > 1 and words[1].isdecimal()}


def read(file: Path) -> str:
    return file.read_text(encoding="utf-8")


@cache
def bf16_pays() -> bool:
    """Whether this CPU multiplies bf16 clearly faster than fp32; some have it and take twice the time."""
    has = torch.cpu.get_capabilities()
    if not (has.get("amx_bf16") or has.get("avx512_bf16") or has.get("bf16")):
        return False
    bf16, fp32 = product_seconds((torch.bfloat16, torch.float32))
    return bf16 < CLEARLY * fp32


def product_seconds(dtypes: Sequence[torch.dtype], size: int = 768, repeats: int = 9) -> list[float]:
    """CPU seconds of a matrix product of each type on one core, the least of several."""
    matrices = [torch.ones(size, size, dtype=dtype) for dtype in dtypes]
    least = [float("inf")] * len(matrices)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(repeats):  # in turns: what slows the core for a while slows all of them
            for place, matrix in enumerate(matrices):
                started = time.thread_time()
                torch.mm(matrix, matrix)
                least[place] = min(least[place], time.thread_time() - started)
    finally:
        torch.set_num_threads(threads)
    return least


def settle() -> None:
    """Use a CPU as a long run wants it: no more threads than cores, and freed memory kept for the next step.

    By default glibc unmaps every large tensor that is freed, and the next one is mapped page by page, zeroed
    by the kernel: a fifth of a CPU step's time. The memory a process needs at most is the same.
    """
    if torch.get_num_threads() > usable_cores():
        torch.set_num_threads(usable_cores())
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc has it, musl does not
    if mallopt is not None:
        mallopt(-1, -1)  # M_TRIM_THRESHOLD: never shrink the heap
        mallopt(-4, 0)  # M_MMAP_MAX: no memory maps of its own for large blocks

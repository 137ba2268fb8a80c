"""Measuring several ways of doing one thing in turns, so that the machine's moods hit all alike."""

import platform
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median

import torch


def alternate(ways: dict[str, Callable[[], object]], repeats: int = 7) -> dict[str, float]:
    """Median seconds of each way, called in turn after a warm-up round. On a GPU each call is waited for."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(repeats + 1):
        for name, way in ways.items():
            started = now()
            way()
            if repeat:  # the first round warms up
                seconds[name].append(now() - started)
    return {name: median(values) for name, values in seconds.items()}


def now() -> float:
    """Seconds, with everything asked of a GPU done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def machine(*packages: str) -> str:
    """The machine and the versions, in one line."""
    cpu = platform.processor() or platform.machine()
    listing = Path("/proc/cpuinfo")
    if listing.exists():
        lines = listing.read_text().splitlines()
        cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), cpu)
    parts = [cpu, f"{torch.get_num_threads()} thread{'s' if torch.get_num_threads() > 1 else ''}"]
    parts += [torch.cuda.get_device_name()] if torch.cuda.is_available() else []
    return ", ".join([*parts, *(f"{name} {installed(name)}" for name in ("torch", *packages))])


def installed(package: str) -> str:
    """The version of a package, or that it is missing."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "is not installed"


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table: the first column to the left, the others to the right."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    print(f"\n{title}")
    for row in (header, *rows):
        first, *others = (text.rjust(width) for text, width in zip(row, widths, strict=True))
        cells = [first.strip().ljust(widths[0]), *others]
        print("  " + "  ".join(cells).rstrip())

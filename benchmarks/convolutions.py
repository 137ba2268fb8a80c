"""Which convolutions does torch compute wrong on this CPU, and does `byol.method.cpu` know them?

python benchmarks/convolutions.py

The gradient of a convolution's weights in bf16 beside that in fp64, for maps of 1 to 4 pixels and clips of 1
to 5 frames, several kernels, strides and channels, three tries each, between allocations full of NaN. A
convolution that ends its process is noticed.
"""

import itertools
import multiprocessing
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple

import torch
from measure import machine, table
from torch import nn

from byol.method.cpu import too_small

SMALL = [*itertools.product(range(1, 5), range(1, 5))]
CLIPS = [(frames, side, side) for frames in range(1, 6) for side in (1, 2, 3, 5, 8)]
# Kernel, stride, padding.
FLAT = [
    (3, 1, 1),
    (5, 1, 2),
    (7, 1, 3),
    (9, 1, 4),
    (3, 2, 1),
    (5, 2, 2),
    (7, 2, 3),
    (3, 4, 1),
    (5, 4, 2),
    (1, 2, 0),
]
DEEP = [(3, 1, 1), (3, 2, 1), (5, 1, 2), (1, 2, 0), (3, 1, 0)]


class Kind(NamedTuple):
    channels: int
    kernel: int
    stride: int
    padding: int
    groups: int
    dimensions: int


KINDS = [
    *(Kind(channels, *shape, groups, 2) for channels in (16, 64, 192, 256, 512) for shape in FLAT
      for groups in (1, channels)),
    *(Kind(channels, *shape, 1, 3) for channels in (16, 64, 256) for shape in DEEP),
]  # fmt: skip


def wrong(layer: Any, x: torch.Tensor) -> bool:
    """Whether one of three gradients in bf16 is far from that in fp64."""
    for _ in range(3):
        freed = [torch.full((2**size,), float("nan")) for size in range(8, 22)]
        del freed
        with torch.autocast("cpu", torch.bfloat16):
            y = layer(x).float()
        outer = torch.randn_like(y)
        (found,) = torch.autograd.grad(y, [layer.weight], outer)
        exact = layer._conv_forward(x.double(), layer.weight.double(), None)
        (expected,) = torch.autograd.grad(exact, [layer.weight], outer.double())
        if not (found - expected).abs().max() < 0.05 * expected.abs().max():
            return True
    return False


def tried(kind: Kind) -> list[tuple[tuple[int, ...], bool, bool]]:
    """Each map with whether it is wrong and whether it is named."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    found = []
    channels, kernel, stride, padding, groups, dimensions = kind
    make = nn.Conv2d if dimensions == 2 else nn.Conv3d
    layout = torch.channels_last if dimensions == 2 else torch.contiguous_format
    for sides in SMALL if dimensions == 2 else CLIPS:
        if min(sides) + 2 * padding < kernel:
            continue
        layer = make(channels, channels, kernel, stride, padding, groups=groups, bias=False)
        layer = layer.to(memory_format=layout)
        x = torch.randn(8, channels, *sides).to(memory_format=layout)
        found.append((sides, wrong(layer, x), too_small(layer, x)))
    return found


def in_a_process() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))


def main() -> None:
    counts: Counter[str] = Counter()
    rows = []
    pool = in_a_process()
    for kind in KINDS:
        try:
            found = pool.submit(tried, kind).result()
        except BrokenProcessPool:
            rows.append([*map(str, kind), "the process ended", ""])
            pool = in_a_process()
            continue
        missed = [sides for sides, is_wrong, named in found if is_wrong and not named]
        counts.update(f"{'wrong' if w else 'right'}, {'named' if n else 'not named'}" for _, w, n in found)
        told = [sides for sides, is_wrong, _ in found if is_wrong]
        if told:
            rows.append([*map(str, kind), " ".join("x".join(map(str, s)) for s in told), str(len(missed))])
    pool.shutdown()
    table("wrong in bf16", [*Kind._fields, "maps", "not named"], rows)
    print(", ".join(f"{count} {what}" for what, count in sorted(counts.items())))
    print(machine())


if __name__ == "__main__":
    main()

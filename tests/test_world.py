"""Where a run works: one process, one device, the arithmetic that is fastest there."""

import os
import shutil
import subprocess
import time

import pytest
import torch

from byol.errors import ConfigError
from byol.world import World, product_seconds, room


def seconds_of_products(dtype: torch.dtype, shape: tuple[int, int, int]) -> float:
    rows, inner, columns = shape
    left, right = torch.ones(rows, inner, dtype=dtype), torch.ones(inner, columns, dtype=dtype)
    best = float("inf")
    for _ in range(15):
        started = time.perf_counter()
        left @ right
        best = min(best, time.perf_counter() - started)
    return best


def test_the_default_precision_of_a_cpu_is_the_one_that_multiplies_faster():
    shape = (2048, 576, 256)  # a 3x3 convolution of 64 channels as a product
    bf16, fp32 = seconds_of_products(torch.bfloat16, shape), seconds_of_products(torch.float32, shape)
    chosen = World.join("cpu").default_precision()
    if max(bf16, fp32) > 1.3 * min(bf16, fp32):  # else either will do
        assert chosen == ("bf16" if bf16 < fp32 else "fp32")


def test_the_time_of_a_product_grows_with_its_size():
    assert product_seconds(torch.float32, size=1024) > 5 * product_seconds(torch.float32, size=256)


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "cpu:x", ""])
def test_a_device_that_is_not_there_is_a_sentence(name):
    with pytest.raises(ConfigError, match="device is"):
        World.join(name)


def test_several_processes_are_refused_until_they_would_train_together(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ConfigError, match="WORLD_SIZE is 4"):
        World.join("cpu")


def test_the_world_of_one_knows_its_free_memory_and_its_name():
    world = World.join("cpu")
    assert (world.rank, world.size, world.device.type) == (0, 1, "cpu")
    assert 2**20 < world.free_memory() <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert "thread" in world.describe()


@pytest.mark.skipif(shutil.which("free") is None, reason="needs the command free")
def test_free_memory_counts_what_the_system_keeps_of_files_it_has_read(tmp_path, monkeypatch):
    """A machine that has read many files has few empty pages, yet most of its memory is to be had."""
    monkeypatch.setattr("byol.world.CGROUPS", tmp_path)  # `free` knows nothing of a container's limit
    available = int(
        subprocess.run(["free", "--bytes"], capture_output=True, check=True)
        .stdout.split(b"Mem:")[1]
        .split()[5]
    )
    assert World.join("cpu").free_memory() == pytest.approx(available, rel=0.2)


@pytest.mark.parametrize(
    ("files", "left"),
    [
        ({}, None),
        ({"memory.max": "max", "memory.current": "5", "memory.stat": ""}, None),
        ({"memory.max": "800", "memory.current": "700", "memory.stat": "anon 600\ninactive_file 50\n"}, 150),
        (
            {
                "memory.limit_in_bytes": "800",
                "memory.usage_in_bytes": "700",
                "memory.stat": "total_inactive_file 9\n",
            },
            109,
        ),
    ],
)
def test_a_control_group_leaves_what_is_not_in_use_of_its_limit(tmp_path, files, left):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert room(tmp_path) == left

"""What the machine leaves to a process, and what is fast on it."""

import os
import shutil
import subprocess
import sys

import pytest
import torch

from byol.machine import available_memory, bf16_pays, cores_allowed, memory_left, usable_cores


def in_a_process(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.skipif(shutil.which("free") is None, reason="needs the command free")
def test_free_memory_counts_what_the_system_keeps_of_files_it_has_read(tmp_path, monkeypatch):
    """A machine that has read many files has few empty pages, yet most of its memory is to be had."""
    monkeypatch.setattr("byol.machine.CGROUPS", tmp_path)  # `free` knows nothing of a container's limit
    said = subprocess.run(["free", "--bytes"], capture_output=True, check=True).stdout
    assert available_memory() == pytest.approx(int(said.split(b"Mem:")[1].split()[5]), rel=0.2)


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
    assert memory_left(tmp_path) == left


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system binds no process to cores")
def test_cores_and_threads_and_workers_are_those_the_process_is_bound_to():
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "import torch; torch.set_num_threads(4)\n"
        "import byol; from byol.machine import usable_cores\n"
        "world = byol.World.join('cpu')\n"
        "plan = byol.plan_run(byol.TrainConfig(out='a'), byol.ImageFacts(9000, None, 3, False), world)\n"
        "print(usable_cores(), torch.get_num_threads(), plan.workers)"
    )
    assert in_a_process(code) == "1 1 1"


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, None),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "250000 100000\n"}, 2.5),
        ({"cpu.cfs_quota_us": "-1\n", "cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu.cfs_quota_us": "50000\n", "cpu.cfs_period_us": "100000\n"}, 0.5),
    ],
)
def test_a_container_s_limit_on_cpu_time_is_so_many_cores(tmp_path, files, cores, monkeypatch):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert cores_allowed(tmp_path) == cores
    monkeypatch.setattr("byol.machine.CGROUPS", tmp_path)
    (tmp_path / "cpu").symlink_to(tmp_path)  # where version 1 has it
    bound = len(os.sched_getaffinity(0))
    assert usable_cores() == (bound if cores is None else min(bound, max(1, int(cores))))


def test_bf16_is_not_taken_where_the_cpu_has_no_instructions_for_it():
    has = torch.cpu.get_capabilities()
    if not any(has.get(name) for name in ("amx_bf16", "avx512_bf16", "bf16")):
        assert not bf16_pays()


def test_precision_is_measured_in_time_that_the_process_had_the_core():
    """Something else takes the core between any two steps of the measurement, as on a busy machine."""
    code = (
        "import signal, time, torch\n"
        "from byol.machine import product_seconds\n"
        "def elsewhere(*_):\n"
        "    time.sleep(0.1)\n"
        "    signal.setitimer(signal.ITIMER_REAL, 0.0001)\n"
        "signal.signal(signal.SIGALRM, elsewhere)\n"
        "signal.setitimer(signal.ITIMER_REAL, 0.0001)\n"
        "print(max(product_seconds((torch.float32, torch.float32), size=256, repeats=5)) < 0.1)"
    )
    assert in_a_process(code) == "True"

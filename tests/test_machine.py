"""What the machine leaves to a process, and what is fast on it."""

import os
import shutil
import subprocess
import sys

import pytest
import torch

from byol.machine import available_memory, bf16_pays, usable_cores


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


def group(folder, files, monkeypatch):
    """The control group, of version 2 and of version 1, that this process is in."""
    for name, text in files.items():
        (folder / name).write_text(text)
    for controller in ("cpu", "memory"):
        (folder / controller).symlink_to(folder)
    monkeypatch.setattr("byol.machine.CGROUPS", folder)


MIB = 2**20
LIMITED = {"memory.max": 8 * MIB, "memory.current": 7 * MIB, "memory.stat": f"anon 1\ninactive_file {MIB}\n"}
OLD = {
    "memory.limit_in_bytes": 8 * MIB,
    "memory.usage_in_bytes": 9 * MIB,
    "memory.stat": f"total_inactive_file {3 * MIB}\n",
}


@pytest.mark.parametrize(
    ("files", "left"),
    [
        ({}, None),
        ({"memory.max": "max", "memory.current": "5", "memory.stat": ""}, None),
        (LIMITED, 2 * MIB),
        (OLD, 2 * MIB),
    ],
)
def test_a_control_group_leaves_what_is_not_in_use_of_its_limit(tmp_path, files, left, monkeypatch):
    group(tmp_path, {name: str(text) for name, text in files.items()}, monkeypatch)
    assert (available_memory() > 100 * MIB) if left is None else (available_memory() == left)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system binds no process to cores")
def test_cores_and_threads_and_workers_are_those_the_process_is_bound_to():
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "import torch; torch.set_num_threads(4)\n"
        "import byol; from byol.machine import usable_cores\n"
        "world = byol.World.join('cpu')\n"
        "config = byol.TrainConfig(out='a', epochs=1)\n"
        "plan = byol.plan_run(config, byol.ImageFacts(9000, None, 3, False), world)\n"
        "print(usable_cores(), torch.get_num_threads(), plan.workers)"
    )
    assert in_a_process(code) == "1 1 1"


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, None),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "150000 100000\n"}, 1),
        ({"cpu.max": "25000 100000\n"}, 1),
        ({"cpu.cfs_quota_us": "-1\n", "cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu.cfs_quota_us": "199999\n", "cpu.cfs_period_us": "100000\n"}, 1),
    ],
)
def test_a_container_s_limit_on_cpu_time_is_so_many_cores(tmp_path, files, cores, monkeypatch):
    group(tmp_path, files, monkeypatch)
    bound = len(os.sched_getaffinity(0))
    assert usable_cores() == (bound if cores is None else cores)


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
        "print(max(product_seconds((torch.float32, torch.float32), size=256, repeats=5)) < 0.1)\n"
        "signal.signal(signal.SIGALRM, signal.SIG_IGN)"  # else one may end the process as it ends
    )
    assert in_a_process(code) == "True"

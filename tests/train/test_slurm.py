"""examples/slurm.sh with a scontrol and an srun that only note how they were called, and torchrun itself."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import run_byol, words

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
SCRIPT = Path(__file__).parents[2] / "examples" / "slurm.sh"
COMMANDS = {
    "srun": 'exec "$@"',
    "torchrun": f'exec {sys.executable} -m torch.distributed.run "$@"',
    "scontrol": 'echo "$@" >> "$NOTES"\nif [ "$1" = show ]; then echo 127.0.0.1; fi\nexit "${REFUSE:-0}"',
}


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """The environment of a job on one machine, two processes each."""
    (tmp_path / "bin").mkdir()
    for name, body in COMMANDS.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    here = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    job = {"SLURM_JOB_ID": "4711", "SLURM_JOB_NODELIST": "node[1]", "SLURM_JOB_NUM_NODES": "1"}
    job |= {"SLURM_GPUS_ON_NODE": "2", "PORT": str(port), "NOTES": str(tmp_path / "notes")}
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, **job, "PATH": path, "PYTHONPATH": here, "OMP_NUM_THREADS": "1"}


def submit(slurm: dict[str, str], log: Path, run: list[str]) -> subprocess.Popen[bytes]:
    with log.open("wb") as file:
        return subprocess.Popen(
            ["bash", str(SCRIPT), *run[1:]], env=slurm, stdout=file, stderr=file, start_new_session=True
        )


def test_a_job_whose_time_is_nearly_over_saves_requeues_itself_once_and_continues(
    slurm: dict[str, str], arrays: Path, tmp_path: Path
):
    flags = {"epochs": 30, "save_every_steps": 100}
    run = words(arrays, tmp_path / "a", **flags)
    job = submit(slurm, tmp_path / "first", run)
    try:
        metrics = tmp_path / "a" / "metrics.jsonl"
        while job.poll() is None and (not metrics.exists() or metrics.read_text().count("\n") < 5):
            time.sleep(0.1)
        job.send_signal(signal.SIGUSR1)
        code = job.wait(300)
    finally:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)
    said = (tmp_path / "first").read_text(errors="replace")
    assert code == 0, said
    assert said.count("Stopped by SIGUSR1 and saved at step") == 1, said
    assert "job 4711 goes back into the queue" in said
    assert (tmp_path / "notes").read_text().splitlines() == ["show hostnames node[1]", "requeue 4711"]
    assert subprocess.run(["pgrep", "-f", str(tmp_path / "a")], check=False).returncode == 1  # no orphans
    job = submit(slurm, tmp_path / "second", run)
    assert job.wait(600) == 0
    assert "continued at step" in (tmp_path / "second").read_text(errors="replace")
    run_byol(2, words(arrays, tmp_path / "whole", **flags), tmp_path / "log")
    encoders = [(tmp_path / name / "encoder.safetensors").read_bytes() for name in ("a", "whole")]
    assert encoders[0] == encoders[1]

"""examples/slurm.sh with a scontrol and an srun that only note how they were called, and torchrun itself."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import run_byol, words

SCRIPT = Path(__file__).parents[2] / "examples" / "slurm.sh"
# Stands for a run that saves when it is told to; torchrun then ends with 1.
RUN = 'echo "$@" >> "$NOTES"; trap "kill %1; echo saved; exit 1" USR1; sleep 60 & touch "$NOTES.begun"; wait'
COMMANDS = {
    "srun": 'exec "$@"',
    "torchrun": f'exec {sys.executable} -m torch.distributed.run "$@"',
    "scontrol": 'echo "$@" >> "$NOTES"\n[ "$1" = show ] && echo 127.0.0.1 || exit "${REFUSE:-0}"',
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


def warned(job: subprocess.Popen[bytes], begun: Callable[[], bool], seconds: float) -> int:
    """The exit code of a job that is told, once it has begun, that its time is nearly over."""
    try:
        while job.poll() is None and not begun():
            time.sleep(0.01)
        job.send_signal(signal.SIGUSR1)
        return job.wait(seconds)
    finally:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)


@pytest.mark.parametrize("number", ["4711", "4700_3"])
@pytest.mark.parametrize("scontrol", ["requeues", "refuses", "is missing"])
def test_a_job_goes_back_into_the_queue_by_its_own_number_or_warns_and_is_not_called_done(
    slurm: dict[str, str], tmp_path: Path, scontrol: str, number: str
):
    """A task of an array is named by the array's number and its own: one number alone may mean all of it."""
    commands = tmp_path / "bin"
    (commands / "srun").write_text(f"#!/bin/bash\n{RUN}\n")
    for name in ("bash", "head", "sleep", "touch"):
        (commands / name).symlink_to(shutil.which(name) or "")
    if scontrol == "is missing":
        (commands / "scontrol").unlink()
    array = {"SLURM_ARRAY_JOB_ID": "4700", "SLURM_ARRAY_TASK_ID": "3", "PORT": ""} if "_" in number else {}
    refuse = {"REFUSE": "1"} if scontrol == "refuses" else {}
    own = {**array, **refuse, "PATH": str(commands)}
    job = submit({**slurm, **own}, tmp_path / "log", ["train", "photos"])
    code = warned(job, (tmp_path / "notes.begun").exists, 60)
    said, notes = (tmp_path / "log").read_text(), (tmp_path / "notes").read_text().splitlines()
    assert said.index("saved") < said.index(f"job {number} goes back into the queue")
    assert [line for line in notes if "requeue" in line] == [f"requeue {number}"] * (scontrol != "is missing")
    assert (f"warning: job {number} could not be requeued; submit" in said) == (scontrol != "requeues")
    assert code == (0 if scontrol == "requeues" else 75)
    machine = socket.gethostname() if scontrol == "is missing" else "127.0.0.1"
    port = "24711" if array else slurm["PORT"]  # two jobs on one machine want two
    assert any(f"--rdzv-endpoint={machine}:{port} -m byol train photos" in line for line in notes)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_job_whose_time_is_nearly_over_saves_requeues_itself_once_and_continues(
    slurm: dict[str, str], arrays: Path, tmp_path: Path
):
    flags = {"epochs": 30, "save_every_steps": 100}
    run = words(arrays, tmp_path / "a", **flags)
    job = submit(slurm, tmp_path / "first", run)
    metrics = tmp_path / "a" / "metrics.jsonl"
    code = warned(job, lambda: metrics.exists() and metrics.read_text().count("\n") >= 5, 300)
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

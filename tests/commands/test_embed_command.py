"""`byol embed` in processes of its own: stopped by signals, shared out, killed and continued."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import forked
import numpy as np
import pytest
from full_disk import largest_file

from byol.cli import main
from byol.encoders.encoder import save_encoder
from byol.features.embed import PART, SHARD
from byol.features.features import Features

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "byol")


@pytest.fixture
def words(tmp_path, encoder_of, monkeypatch) -> list[str]:
    """The words of a command of some seconds, up to its --out; one.npz is what one process makes of it."""
    save_encoder(encoder_of("convnet", width=4, size=(8, 8)), tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (5 * SHARD + 100, 8, 8, 3), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    words = ["embed", "encoder.safetensors", "--data", "images.npy", "--device", "cpu", "--out"]
    assert main([*words, "one.npz"]) == 0
    return words


def has_more_to_do(alive: Callable[[], bool]) -> None:
    """Waits until the first shard is kept."""
    while not list(Path().glob("f.npz.partial-*/shard-*.npz")):
        assert alive()
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 75), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow),
     pytest.param(signal.SIGHUP, 75, marks=pytest.mark.slow)],
)  # fmt: skip
def test_a_signal_ends_it_with_a_sentence_and_the_same_command_continues(words, capsys, number, code):
    process = forked.command([*words, "f.npz"], Path("said"))
    has_more_to_do(process.is_alive)
    os.kill(process.pid, number)
    process.join(120)
    said = Path("said").read_text()
    assert process.exitcode == code, said
    assert said.startswith("byol embed: Stopped by ") or number == signal.SIGINT
    assert "same command" in said
    assert "Traceback" not in said
    assert not os.path.exists("f.npz")
    capsys.readouterr()
    assert main([*words, "f.npz"]) == 0
    assert "images were done already" in capsys.readouterr().err
    assert Path("f.npz").read_bytes() == Path("one.npz").read_bytes()
    assert not list(Path().glob("f.npz.partial-*"))


@pytest.mark.slow
def test_two_processes_give_the_bytes_of_one(words):
    done = subprocess.run([*TORCHRUN, *words, "f.npz"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("written ") == 1
    assert Path("f.npz").read_bytes() == Path("one.npz").read_bytes()
    assert not list(Path().glob("f.npz.partial-*"))


@pytest.mark.slow
@pytest.mark.skipif(
    not os.path.exists("/proc/self/task"), reason="the processes of torchrun are looked up there"
)
def test_a_killed_process_ends_the_others_and_one_alone_can_continue(words):
    process = subprocess.Popen(
        [*TORCHRUN, *words, "f.npz"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    has_more_to_do(lambda: process.poll() is None)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    process.communicate(timeout=300)
    assert process.returncode != 0
    assert not os.path.exists("f.npz")
    assert main([*words, "f.npz"]) == 0
    assert Path("f.npz").read_bytes() == Path("one.npz").read_bytes()


def test_a_full_disk_is_a_sentence_and_leaves_nothing_half_written(words, capsys):
    capsys.readouterr()
    with largest_file(2000):
        assert main([*words, "f.npz"]) == 70
    said = capsys.readouterr().err
    assert said.startswith("byol embed: f.npz.partial-")
    assert said.count("\n") == 1
    assert not list(Path().glob("f.npz*"))


def test_a_name_that_no_file_can_have_is_told_before_the_work(run, tmp_path, capsys):
    out = tmp_path / ("x" * 252 + ".npz")
    assert main(["embed", str(run), "--data", "nowhere", "--out", str(out)]) == 2
    assert "File name too long" in capsys.readouterr().err


def test_a_folder_of_files_is_requested_by_a_slash(encoder_of, tmp_path, monkeypatch, capsys):
    save_encoder(encoder_of("convnet", width=4, size=(8, 8)), tmp_path)
    monkeypatch.chdir(tmp_path)
    np.save("images.npy", np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8))
    words = ["embed", "encoder.safetensors", "--data", "images.npy", "--device", "cpu", "--out"]
    assert main([*words, "one.npz"]) == 0
    capsys.readouterr()
    assert main([*words, "new/f/"]) == 0
    assert capsys.readouterr().out == "written    new/f/: 1 file, 40 images x 144 features\n"
    one = Features.load("one.npz")
    assert np.array_equal(Features.load("new/f/part-000000.parquet").x, one.x)
    assert main([*words, "new/f"]) == 2
    assert "or new/f/ for many" in capsys.readouterr().err
    assert main([*words, "one.npz/"]) == 2


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_fill_a_folder_with_the_bytes_of_one_also_after_a_kill(words):
    images = np.random.default_rng(0).integers(0, 256, (3 * PART, 8, 8, 3), dtype=np.uint8)
    np.save("images.npy", images)
    assert main([*words, "one/"]) == 0
    process = subprocess.Popen([*TORCHRUN, *words, "two/"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while not list(Path("two").glob("part-*")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    process.communicate(timeout=300)
    assert process.returncode != 0
    done = subprocess.run([*TORCHRUN, *words, "two/"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"written    two/: 3 files, {3 * PART:,} images x 144 features\n"
    names = ["_features.json", *(f"part-{number:06d}.parquet" for number in range(3))]
    for name in names:
        assert Path("two", name).read_bytes() == Path("one", name).read_bytes()
    assert sorted(path.name for path in Path("two").iterdir()) == [".lock", *names]

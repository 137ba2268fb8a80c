"""Checkpoints: complete or not there, verified, and never a way to run code."""

import errno
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from full_disk import largest_file

from byol.errors import CheckpointError, DiskError, TrainingError
from byol.train import checkpoint
from byol.train.config import TrainConfig
from byol.train.signals import StopSignals


def tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {"a": torch.randn(3, 4, generator=generator), "b.c": torch.arange(5), "scalar": torch.tensor(2.5)}


def test_a_checkpoint_comes_back_bit_for_bit(tmp_path):
    checkpoint.save(tmp_path, 7, tensors(), "plan")
    step, found = checkpoint.latest(tmp_path, "plan")
    assert step == 7
    assert found.keys() == tensors().keys()
    assert all(torch.equal(found[name], value) for name, value in tensors().items())


def test_the_newest_are_kept_and_the_others_retired(tmp_path):
    for step in (1, 2, 3, 10):
        checkpoint.save(tmp_path, step, tensors(step), "plan", keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000003", "step-00000010"]


def test_what_is_not_whole_takes_no_place_among_those_that_are_kept(tmp_path):
    """Folders of later steps without a manifest, as copies that were broken off: two would have cost all."""
    checkpoint.save(tmp_path, 1, tensors(1), "plan")
    for step in (8, 9):
        (tmp_path / f"step-{step:08d}").mkdir()
        (tmp_path / f"step-{step:08d}" / "state.safetensors").write_text("{")
    for step, kept in ((2, [1, 2]), (3, [2, 3])):
        checkpoint.save(tmp_path, step, tensors(step), "plan")
        assert sorted(checkpoint.step_of(path) for path in checkpoint.complete(tmp_path)) == kept
        assert checkpoint.latest(tmp_path, "plan")[0] == step


@pytest.mark.parametrize("file", ["state.safetensors", "manifest.json"])
@pytest.mark.parametrize(
    "damage", ["cut", "empty", "a pointer", "a flipped bit in the middle", "a flipped bit at the end", "gone"]
)
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path, caplog, file, damage):
    for step in (1, 2):
        checkpoint.save(tmp_path, step, tensors(step), "plan")
    path = tmp_path / "step-00000002" / file
    data = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "a pointer":
        path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    elif "flipped" in damage:  # at the end of state.safetensors: in a tensor, where only the checksum tells
        data[len(data) // 2 if "middle" in damage else -1] ^= 64
        path.write_bytes(data)
    else:
        path.unlink()
    step, found = checkpoint.latest(tmp_path, "plan")
    assert step == 1
    assert torch.equal(found["a"], tensors(1)["a"])
    assert (damage == "gone" and file == "manifest.json") or "step-00000002 is damaged" in caplog.text


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", ["a pipe", "a device", "a folder"])
@pytest.mark.parametrize("file", ["state.safetensors", "manifest.json"])
def test_a_checkpoint_of_something_that_never_ends_is_passed_over_for_the_one_before(tmp_path, file, kind):
    """As in a run of a stranger's: it was waited for, and read, for ever."""
    for step in (1, 2):
        checkpoint.save(tmp_path, step, tensors(step), "plan")
    path = tmp_path / "step-00000002" / file
    path.unlink()
    {"a pipe": os.mkfifo, "a folder": os.mkdir}.get(kind, lambda path: path.symlink_to("/dev/zero"))(path)
    assert checkpoint.latest(tmp_path, "plan")[0] == 1


def test_when_no_checkpoint_is_sound_nothing_starts_from_zero_in_silence(tmp_path):
    checkpoint.save(tmp_path, 1, tensors(), "plan")
    (tmp_path / "step-00000001" / "state.safetensors").write_text("{")
    with pytest.raises(CheckpointError, match="None of the 1 checkpoints"):
        checkpoint.latest(tmp_path, "plan")


def sealed(manifest: dict) -> str:
    """A manifest's JSON with the checksum of its values."""
    manifest.pop("seal", None)
    words = json.dumps(manifest).encode()
    return json.dumps(manifest | {"seal": hashlib.blake2b(words, digest_size=16).hexdigest()})


def test_whatever_bit_of_a_manifest_flips_the_checkpoint_before_is_taken(tmp_path):
    """None makes it one of another plan, or of another version of byol."""
    plan = hashlib.blake2b(b"plan", digest_size=16).hexdigest()
    for step in (1, 2):
        checkpoint.save(tmp_path, step, {"a": torch.ones(2)}, plan)
    path = tmp_path / "step-00000002" / "manifest.json"
    sound = path.read_bytes()
    for bit in range(8 * len(sound)):
        damaged = bytearray(sound)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        assert checkpoint.latest(tmp_path, plan)[0] == 1, damaged
    path.write_bytes(sound)
    assert checkpoint.latest(tmp_path, plan)[0] == 2


@pytest.mark.parametrize("change", [{"format": "1"}, {"format": 1}, {"plan": None}, {"blake2b": 0}])
def test_a_manifest_that_was_edited_is_damaged(tmp_path, caplog, change):
    for step in (1, 2):
        path = checkpoint.save(tmp_path, step, tensors(step), "plan") / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert checkpoint.latest(tmp_path, "plan")[0] == 1
    assert "step-00000002 is damaged" in caplog.text


def test_a_checkpoint_of_another_plan_is_refused(tmp_path):
    checkpoint.save(tmp_path, 1, tensors(), "plan")
    with pytest.raises(CheckpointError, match="another plan"):
        checkpoint.latest(tmp_path, "other")


def test_a_checkpoint_of_a_newer_version_is_refused(tmp_path):
    path = checkpoint.save(tmp_path, 1, tensors(), "plan") / "manifest.json"
    manifest = json.loads(path.read_text())
    assert sealed(dict(manifest)) == json.dumps(manifest)
    path.write_text(sealed(manifest | {"format": 99}))
    with pytest.raises(CheckpointError, match=r"format 99.*Upgrade byol"):
        checkpoint.latest(tmp_path, "plan")


@pytest.mark.parametrize("written", [1, 2])
def test_a_checkpoint_of_an_older_version_is_refused_with_what_reads_it(tmp_path, written):
    """Those of formats 1 and 2 had no checksum of the manifest itself."""
    path = checkpoint.save(tmp_path, 1, tensors(), "plan") / "manifest.json"
    manifest = json.loads(path.read_text()) | {"format": written}
    del manifest["seal"]
    path.write_text(json.dumps(manifest))
    with pytest.raises(
        CheckpointError, match=rf"format {written}; this byol reads 3\. .*with the byol that wrote"
    ):
        checkpoint.latest(tmp_path, "plan")
    assert path.exists()


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    """As after a gradient that a GPU had not told of yet."""
    net = torch.nn.Linear(3, 3)
    saver = checkpoint.Saver(tmp_path, net, torch.optim.SGD(net.parameters()), "plan", TrainConfig(out="a"))
    with torch.no_grad():
        net.weight[0, 0] = torch.inf
    with pytest.raises(TrainingError, match=r"step 1 the state is not finite \(weight\)"):
        saver.save(1)
    assert not list(tmp_path.iterdir())


def test_statistics_that_are_not_finite_are_never_saved(tmp_path):
    """BatchNorm's running variance overflows while the loss, of a batch's own statistics, is finite still."""
    net = torch.nn.BatchNorm1d(3)
    saver = checkpoint.Saver(tmp_path, net, torch.optim.SGD(net.parameters()), "plan", TrainConfig(out="a"))
    net(torch.randn(8, 3) * 1e25)
    assert net.running_var.isinf().all()
    with pytest.raises(TrainingError, match="running_var"):
        saver.save(1)
    assert not list(tmp_path.iterdir())


def test_the_newest_checkpoint_is_that_of_the_highest_step(tmp_path):
    """Whatever the clock said when they were written."""
    for step in (1, 2):
        checkpoint.save(tmp_path, step, tensors(step), "plan")
    os.utime(tmp_path / "step-00000002", (0, 0))
    assert checkpoint.latest(tmp_path, "plan")[0] == 2
    assert "step-00000002" in checkpoint.last_good(tmp_path)


def test_checkpoints_do_not_travel_through_the_temporary_folder(tmp_path, monkeypatch):
    """Nothing is made in it, not for a moment: that would show in the time it was changed."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    os.utime(temporary, (0, 0))
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", None)  # what Python has found before
    assert tempfile.gettempdir() == str(temporary)
    os.utime(temporary, (0, 0))  # Python has tried whether it can write there
    folder = tmp_path / "checkpoints"
    for step in (1, 2, 3):
        checkpoint.save(folder, step, tensors(), "plan")
    assert checkpoint.latest(folder, "plan")[0] == 3
    assert temporary.stat().st_mtime == 0


def test_an_unfinished_folder_under_a_checkpoints_name_is_replaced(tmp_path):
    (tmp_path / "step-00000001").mkdir()
    (tmp_path / "step-00000001" / "state.safetensors").write_text("{")
    assert checkpoint.latest(tmp_path, "plan") is None
    checkpoint.save(tmp_path, 1, tensors(), "plan")
    assert checkpoint.latest(tmp_path, "plan")[0] == 1


def spoil(path: Path) -> None:
    """Flip a bit in a checkpoint's tensors, which only their checksum tells."""
    data = bytearray((path / "state.safetensors").read_bytes())
    data[-1] ^= 1
    (path / "state.safetensors").write_bytes(data)


def a_saver(folder: Path, **changes: object) -> checkpoint.Saver:
    net = torch.nn.Linear(3, 3)
    return checkpoint.Saver(
        folder, net, torch.optim.SGD(net.parameters()), "plan", TrainConfig(out="a", **changes)
    )


def test_a_checkpoint_that_was_found_damaged_counts_no_more_among_the_kept(tmp_path, caplog):
    """Two of later steps would have had both good ones deleted, the one just written too."""
    before = a_saver(tmp_path, keep_checkpoints=4)
    for step in (2, 4, 6, 8):
        before.save(step)
    for step in (6, 8):
        spoil(tmp_path / f"step-{step:08d}")
    saver = a_saver(tmp_path)
    assert saver.restore() == 4
    assert "damaged-step-00000008 now" in caplog.text
    assert checkpoint.last_good(tmp_path).endswith("step-00000004.")
    for step, kept in ((5, [4, 5]), (7, [5, 7])):  # before a damaged one, and behind it
        saver.save(step)
        assert sorted(checkpoint.step_of(path) for path in checkpoint.complete(tmp_path)) == kept
        assert checkpoint.latest(tmp_path, "plan")[0] == step
    spoil(tmp_path / "step-00000007")
    assert a_saver(tmp_path).restore() == 5
    damaged = sorted(path.name for path in tmp_path.glob("damaged-*"))
    assert damaged == [f"damaged-step-{step:08d}" for step in (6, 7, 8)]  # nothing of them was deleted


def test_while_no_checkpoint_is_sound_none_is_renamed(tmp_path):
    """So that one can be restored under its name."""
    a_saver(tmp_path).save(1)
    spoil(tmp_path / "step-00000001")
    with pytest.raises(CheckpointError, match="None of the 1"):
        a_saver(tmp_path).restore()
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_a_checkpoint_that_cannot_be_deleted_is_a_warning(tmp_path, caplog):
    for step in (1, 2):
        checkpoint.save(tmp_path, step, tensors(step), "plan")
    # Where it would go something else stands, whoever runs the test.
    in_the_way = tmp_path / f".del-{os.getpid()}-step-00000001"
    in_the_way.mkdir()
    (in_the_way / "a").touch()
    checkpoint.save(tmp_path, 3, tensors(3), "plan")
    assert "Could not delete the old checkpoint step-00000001" in caplog.text
    assert checkpoint.latest(tmp_path, "plan")[0] == 3


def test_a_checkpoint_that_can_be_deleted_in_part_only_is_a_warning(tmp_path, monkeypatch, caplog):
    """As on a disk that fails meanwhile. It has lost its name, and the next start tries again."""
    for step in (1, 2):
        checkpoint.save(tmp_path, step, tensors(step), "plan")

    def refuse(*words: object, **more: object) -> None:
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", refuse)
        checkpoint.save(tmp_path, 3, tensors(3), "plan")
    assert "Could not delete the old checkpoint step-00000001" in caplog.text
    left = [path.name for path in tmp_path.iterdir() if path.name.startswith(".del-")]
    assert len(left) == 1
    assert [checkpoint.step_of(path) for path in checkpoint.complete(tmp_path)] == [3, 2]
    checkpoint.save(tmp_path, 4, tensors(4), "plan")
    assert checkpoint.latest(tmp_path, "plan")[0] == 4
    checkpoint.sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000003", "step-00000004"]


def test_a_copy_under_the_name_of_another_step_is_not_taken_up(tmp_path, caplog):
    path = checkpoint.save(tmp_path, 3, tensors(), "plan")
    shutil.copytree(path, tmp_path / "step-99999999")
    assert checkpoint.latest(tmp_path, "plan")[0] == 3
    assert "step-99999999 is damaged" in caplog.text


def in_a_small_disk(script: str) -> subprocess.CompletedProcess:
    """Run a script in a namespace of its own, on a disk of 300 kB that is mounted at ./small."""
    mounted = "mkdir small && mount -t tmpfs -o size=300k none small && exec "
    words = [
        "unshare",
        "--map-root-user",
        "--mount",
        "sh",
        "-c",
        mounted + '"$@"',
        "sh",
        sys.executable,
        "-c",
    ]
    return subprocess.run([*words, script], capture_output=True, text=True, timeout=120)


def test_on_a_full_disk_the_newest_checkpoint_wins_over_the_oldest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = in_a_small_disk("""
import torch
from pathlib import Path
from byol.errors import DiskError
from byol.train import checkpoint
folder = Path("small/checkpoints")
for step in range(1, 6):  # of 120 kB: there is room for two
    checkpoint.save(folder, step, {"a": torch.full((30_000,), float(step))}, "plan")
    print(checkpoint.latest(folder, "plan")[0], len(list(folder.iterdir())))
try:
    checkpoint.save(folder, 6, {"a": torch.zeros(100_000)}, "plan")
except DiskError:
    print(checkpoint.latest(folder, "plan")[0], len(list(folder.iterdir())))
""")
    if done.stderr.startswith(("unshare:", "mount:", "mkdir:")):
        pytest.skip(f"no disk can be mounted here: {done.stderr.strip()}")
    assert done.stdout.split("\n") == ["1 1", "2 2", "3 2", "4 2", "5 2", "5 1", ""], done.stderr


def test_on_a_full_disk_damaged_checkpoints_make_room_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = in_a_small_disk("""
import torch
from pathlib import Path
from byol.train import checkpoint
folder = Path("small/checkpoints")
for step in (1, 2):  # of 120 kB: there is room for two
    checkpoint.save(folder, step, {"a": torch.full((30_000,), float(step))}, "plan")
checkpoint.set_aside(folder, 1)
checkpoint.save(folder, 3, {"a": torch.full((30_000,), 3.0)}, "plan")
print(*sorted(path.name for path in folder.iterdir()))
""")
    if done.stderr.startswith(("unshare:", "mount:", "mkdir:")):
        pytest.skip(f"no disk can be mounted here: {done.stderr.strip()}")
    assert done.stdout == "step-00000001 step-00000003\n", done.stderr


def test_after_a_full_disk_the_next_checkpoint_is_saved_as_soon_as_there_is_room(tmp_path, monkeypatch):
    """Another program fills the disk between two checkpoints, and later takes its file away."""
    monkeypatch.chdir(tmp_path)
    done = in_a_small_disk("""
import torch, byol
from pathlib import Path
from byol.train.checkpoint import Saver, latest
net = torch.nn.Linear(170, 170)  # 116 kB
folder = Path("small/checkpoints")
saver = Saver(folder, net, torch.optim.SGD(net.parameters()), "plan", byol.TrainConfig(out="run"))
for step in range(1, 6):
    if step == 2:
        Path("small/others").write_bytes(bytes(100_000))
    if step == 4:
        Path("small/others").unlink()
    saved = saver.save(step)
    print(saved, latest(folder, "plan")[0], *sorted(path.name[-1] for path in folder.iterdir()))
""")
    if done.stderr.startswith(("unshare:", "mount:", "mkdir:")):
        pytest.skip(f"no disk can be mounted here: {done.stderr.strip()}")
    lost = ["False 1 1"] * 2  # the one before stays, and nothing that is unfinished
    assert done.stdout.splitlines() == ["True 1 1", *lost, "True 4 1 4", "True 5 4 5"], done.stderr
    told = [line for line in done.stderr.splitlines() if "is lost" in line]
    for step, line in zip((2, 3), told, strict=True):
        assert f"The checkpoint of step {step} (0.1 MB) is lost, training goes on" in line
        assert "No space left on device. Make room" in line


def test_a_disk_without_room_is_told_beforehand_and_in_bytes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = in_a_small_disk("""
import torch, byol
from pathlib import Path
from byol.train.checkpoint import Saver
net = torch.nn.Linear(300, 300)  # 361 kB
for where in ("small/run", "."):
    saver = Saver(Path(where), net, torch.optim.SGD(net.parameters()), "plan", byol.TrainConfig(out="run"))
    saver.check_room()
saver = Saver(Path("small/run"), net, torch.optim.SGD(net.parameters()), "plan", byol.TrainConfig(out="run"))
print(saver.save(1))
""")
    if done.stderr.startswith(("unshare:", "mount:", "mkdir:")):
        pytest.skip(f"no disk can be mounted here: {done.stderr.strip()}")
    assert done.stdout == "False\n", done.stderr
    before, after = done.stderr.splitlines()
    assert "0.7 MB, and 3 of them" in before
    assert "0.3 MB that are free" in before
    assert "step 1 (0.4 MB) is lost" in after


def test_leftovers_of_dead_processes_are_swept_and_those_of_living_ones_stay(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for pid in (dead.pid, os.getppid()):
        (tmp_path / f".tmp-{pid}-00000003").mkdir()
    (tmp_path / ".del-1-step-00000001").mkdir()
    checkpoint.sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [f".tmp-{os.getppid()}-00000003"]


@pytest.mark.parametrize("build", [
    lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    lambda p: torch.optim.AdamW(p, lr=0.1),
], ids=["sgd", "adamw"])  # fmt: skip
def test_an_optimizer_continues_exactly_where_it_was(build):
    def train(parameters, optimizer, steps):
        for step in steps:
            for number, p in enumerate(parameters):
                p.grad = torch.sin(p.detach() + step + number)
            optimizer.step()

    def fresh():
        torch.manual_seed(0)
        return [
            torch.nn.Parameter(torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last)),
            torch.nn.Parameter(torch.randn(5)),
        ]

    whole, parts = fresh(), fresh()
    train(whole, build(whole), range(6))
    first = build(parts)
    train(parts, first, range(3))
    named = {name: value.contiguous().clone() for name, value in checkpoint.optimizer_tensors(first).items()}
    second = build(parts)
    checkpoint.restore_optimizer(second, named)
    train(parts, second, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))


def test_a_full_disk_costs_the_checkpoint_and_leaves_the_one_before(tmp_path):
    checkpoint.save(tmp_path, 1, {"a": torch.zeros(10)}, "plan")
    with largest_file(65536), pytest.raises(DiskError):
        checkpoint.save(tmp_path, 2, {"a": torch.zeros(100_000)}, "plan")
    assert checkpoint.latest(tmp_path, "plan")[0] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def saves_on_and_on(folder, told):
    """Checkpoints without pause; tells each when it is written. A first SIGTERM ends it after the next."""
    torch.set_num_threads(1)
    begun = checkpoint.latest(folder, "plan")
    with StopSignals() as stop:
        for step in range(1 if begun is None else begun[0] + 1, 10**6):
            checkpoint.save(folder, step, {"a": torch.full((50_000,), float(step))}, "plan")
            told.send(step)
            stop.check()


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for temporary files on another file system than the tests', where there is one."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        monkeypatch.setenv("TMPDIR", name)
        monkeypatch.setattr(tempfile, "tempdir", None)  # what Python has found before
        yield Path(name)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_signal_at_any_moment_while_saving_costs_no_checkpoint_that_was_complete(
    tmp_path, elsewhere, number
):
    """Two hundred times: after SIGKILL the newest is as good, after SIGTERM it is finished."""
    fork, chance, newest = multiprocessing.get_context("fork"), random.Random(0), 0
    for _ in range(200 if number == signal.SIGKILL else 20):
        hears, told = fork.Pipe(duplex=False)
        process = fork.Process(target=saves_on_and_on, args=(tmp_path, told))
        process.start()
        told.close()
        newest = hears.recv()
        time.sleep(chance.uniform(0, 0.03))
        os.kill(process.pid, number)
        process.join()
        with suppress(EOFError):
            while True:
                newest = hears.recv()
        step, tensors = checkpoint.latest(tmp_path, "plan")
        assert step >= newest
        assert number == signal.SIGKILL or step == newest
        assert (tensors["a"] == step).all()
        checkpoint.sweep(tmp_path)
        assert len(list(tmp_path.iterdir())) <= 3  # one more where a kill came before the oldest was retired
    assert not list(elsewhere.iterdir())


@pytest.mark.slow
def test_a_run_killed_at_any_instant_resumes_bit_for_bit(tmp_path):
    """kill -9 at many instants, in the middle of saving too; in the end it is the uninterrupted run."""
    generator = np.random.default_rng(0)
    images = tmp_path / "images.npy"
    np.save(images, generator.integers(0, 256, (64, 16, 16, 3), dtype=np.uint8))
    flags = f"{images} --encoder convnet --model.width 4 --model.projection-hidden-size 256 --image-size 16"
    flags += " --batch-size 8 --epochs 12 --save-every-steps 1 --workers 2 --data.in-memory False"
    flags += " --precision fp32 --device cpu --seed 3"

    def start(out: Path) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "byol", "train", *flags.split(), "--out", str(out)]
        return subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

    def last(out: Path) -> int:
        return max((int(path.name[5:]) for path in (out / "checkpoints").glob("step-*")), default=0)

    def results(out: Path) -> list[bytes]:
        final = out / "checkpoints" / f"step-{last(out):08d}"
        return [(final / name).read_bytes() for name in ("state.safetensors",)] + [
            (out / "encoder.safetensors").read_bytes()
        ]

    assert start(tmp_path / "whole").wait(timeout=120) == 0
    kills = 0
    for delay in (0.0, 0.013, 0.029, 0.051, 0.107):
        before, run = last(tmp_path / "killed"), start(tmp_path / "killed")
        while last(tmp_path / "killed") <= before and run.poll() is None:
            time.sleep(0.005)
        time.sleep(delay)
        if run.poll() is None:
            run.send_signal(signal.SIGKILL)
            kills += 1
        run.wait()
    assert kills >= 3
    assert start(tmp_path / "killed").wait(timeout=120) == 0
    assert results(tmp_path / "killed") == results(tmp_path / "whole")

"""Processes on gloo and the CPU train as one. Most start as from torchrun, one test is torchrun's own."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import Small, run_byol, started, words
from safetensors.torch import load_file, save_file
from small_runs import small_config
from torch import Tensor, distributed

from byol import world as world_module
from byol.cli import main
from byol.data.batches import untimed
from byol.errors import ProcessLost, TrainingError
from byol.evaluation.online import ProbedLearner
from byol.train import run as run_module
from byol.train.checkpoint import Saver, optimizer_tensors
from byol.train.config import ModelConfig, OptimConfig
from byol.train.run import pretrain
from byol.train.setup import Setup, split, together
from byol.train.step import build_optimizer, steps
from byol.train.stopwatch import Stopwatch
from byol.world import World

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
PROBED = {"probe__online": True, "optim__accumulation": 2}


@pytest.fixture(scope="module")
def runs(arrays: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of one process and one of two: accumulated gradients, LARS, the online probe."""
    folder = tmp_path_factory.mktemp("runs")
    for count, name in ((1, "one"), (2, "two")):
        run_byol(count, words(arrays, folder / name, **PROBED, log="tensorboard"), folder / f"{name}.log")
    return folder


def lines(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def losses(out: Path) -> dict[int, float]:
    """By steps, each of which is there once."""
    told = [(line["step"], line["loss"]) for line in lines(out) if "loss" in line]
    assert len(dict(told)) == len(told)
    return dict(told)


def state(out: Path) -> dict[str, Tensor]:
    newest = max((out / "checkpoints").glob("step-*"))
    return load_file(newest / "state.safetensors")


def encoder_bytes(out: Path) -> bytes:
    return (out / "encoder.safetensors").read_bytes()


def assert_same_run(one: Path, other: Path) -> None:
    """Loss by loss and tensor by tensor, to 1e-5 of its length."""
    assert len(losses(one)) >= 20
    assert losses(one) == pytest.approx(losses(other), rel=1e-5)
    ours, theirs = state(one), state(other)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        difference = (theirs[name].double() - value.double()).norm()
        # A bias that BatchNorm subtracts again has no gradient but rounding, and stays next to 0.
        assert difference <= 1e-5 * value.double().norm().clamp(min=0.1), name


def loop(images: Path, out: Path, watched: bool) -> int:
    """The steps of a run, on rank 0 with a stopwatch or without one; its weights are left in `out`."""
    config = small_config(out, image_size=12, batch_size=16, optim=OptimConfig(accumulation=2))
    with World.join("cpu") as world:
        setup = Setup.of("processes:small", images, config, world=world)
        plan = setup.new_plan()
        learner = setup.learner(plan)
        forward, optimizer = setup.distributed(ProbedLearner(learner)), build_optimizer(learner, plan)
        begin = untimed
        if watched and world.rank == 0:
            watch = Stopwatch(world.device)
            watch.follow(learner, forward, optimizer)
            begin = watch.begin
        batches = setup.batches(split(len(setup.images), plan)[0], plan, learner, begin=begin)
        for _ in steps(learner, together(world, batches, begin=begin), optimizer, plan, forward=forward):
            pass
        if world.rank == 0:
            save_file({name: value.contiguous() for name, value in learner.state_dict().items()}, out)
            if begin is not untimed:
                assert min(watch.seconds()[part] for part in ("waiting", "online", "target", "optimizer")) > 0
    return 0


def test_a_stopwatch_changes_nothing_of_what_two_processes_compute(arrays: Path, tmp_path: Path):
    for watched, name in ((False, "bare"), (True, "watched")):
        with started(2, tmp_path / "log", loop, arrays, tmp_path / name, watched) as running:
            assert running.codes() == [0, 0], running.said()
    bare, watched_too = (load_file(tmp_path / name) for name in ("bare", "watched"))
    assert len(bare) > 20
    assert [name for name, value in bare.items() if not torch.equal(value, watched_too[name])] == []


def test_two_processes_are_the_run_of_one(runs: Path):
    """Images in memory, accumulated gradients, LARS, the online probe, whose counts agree too."""
    assert_same_run(runs / "one", runs / "two")
    counted = [[line.get("online_train_top1") for line in lines(runs / run)] for run in ("one", "two")]
    assert counted[0] == counted[1]
    assert len({*counted[0]}) > 2


def test_recomputed_activations_change_nothing_for_several_processes(arrays: Path, tmp_path: Path):
    """With accumulated gradients: losses, weights and statistics are those without, and those of one."""
    for name, count, on in (("kept", 2, False), ("again", 2, True), ("one", 1, True)):
        flags = words(
            arrays, tmp_path / name, encoder="processes:blocks", model__recompute=on, epochs=6, **PROBED
        )
        said = run_byol(count, flags, tmp_path / f"{name}.log")
        assert ("activations computed again" in said) == on
    assert_same_run(tmp_path / "kept", tmp_path / "again")
    assert_same_run(tmp_path / "kept", tmp_path / "one")
    tracked = [name for name in state(tmp_path / "kept") if name.endswith("num_batches_tracked")]
    assert tracked
    for name in tracked:
        assert torch.equal(state(tmp_path / "kept")[name], state(tmp_path / "again")[name])


def test_rank_0_alone_talks_looks_and_saves(runs: Path):
    said = (runs / "two.log").read_text()
    for line in ("run  ", "processes  2", "step 0/", "finished  ", "verdict  ", "next  "):
        assert said.count(f"\n{line}" if line != "run  " else line) == 1, said
    assert [line["step"] for line in lines(runs / "two")] == [line["step"] for line in lines(runs / "one")]
    manifest = max((runs / "two" / "checkpoints").glob("step-*")) / "manifest.json"
    assert json.loads(manifest.read_text())["processes"] == 2
    assert json.loads((runs / "two" / "env.json").read_text())["processes"] == 2
    assert len(list((runs / "two" / "tensorboard").iterdir())) == 1


def test_streamed_images_and_sgd_are_the_run_of_one_too(photos: Path, tmp_path: Path):
    flags = {"data__in_memory": False, "workers": 2, "epochs": 10}
    flags |= {"optim__name": "sgd", "optim__base_lr": 0.05}
    for count, name in ((1, "one"), (2, "two")):
        run_byol(count, words(photos, tmp_path / name, **flags), tmp_path / "log")
    assert_same_run(tmp_path / "one", tmp_path / "two")


def test_extra_views_are_the_run_of_one_too(arrays: Path, tmp_path: Path):
    extra = {"extra__local": 1, "extra__cutout": 1, "extra__targets": 1, "optim__accumulation": 2}
    for count, name in ((1, "one"), (2, "two")):
        run_byol(count, words(arrays, tmp_path / name, **extra), tmp_path / "log")
    assert "learner.extra_predictors.local.0.weight" in state(tmp_path / "two")
    assert_same_run(tmp_path / "one", tmp_path / "two")


@pytest.mark.parametrize("after", [1, 2])
def test_a_signal_to_one_process_saves_and_any_number_of_processes_continues(
    arrays: Path, tmp_path: Path, runs: Path, after: int
):
    """SIGTERM reaches rank 1 in the middle of the step after 11: of two micro-batches with two passes."""
    run = words(arrays, tmp_path / "cut", **PROBED)
    said = run_byol(2, run, tmp_path / "log", expected=75, FAULT="SIGTERM 46")
    assert said.count("Stopped by SIGTERM and saved at step 11 of") == 1
    assert said.count("Stopped") == 1
    run_byol(after, run, tmp_path / "log")
    assert_same_run(runs / "one", tmp_path / "cut")
    if after == 2:
        assert losses(tmp_path / "cut") == losses(runs / "two")
        assert encoder_bytes(tmp_path / "cut") == encoder_bytes(runs / "two")


def test_a_run_of_one_process_is_continued_by_two(arrays: Path, tmp_path: Path, runs: Path):
    run = words(arrays, tmp_path / "cut", **PROBED)
    run_byol(1, run, tmp_path / "log", expected=75, FAULT="SIGTERM 46", RANK="1")
    run_byol(2, run, tmp_path / "log")
    assert_same_run(runs / "one", tmp_path / "cut")


def test_an_unfinished_checkpoint_is_replaced_by_several_processes_and_none_waits_for_ever(
    arrays: Path, tmp_path: Path, runs: Path
):
    """As a copy that was broken off leaves one: under the name of the first step that is saved then."""
    run = words(arrays, tmp_path / "cut", **PROBED)
    run_byol(2, run, tmp_path / "log", expected=75, FAULT="SIGTERM 46")
    steps = sorted(losses(runs / "two"))
    unfinished = tmp_path / "cut" / "checkpoints" / "step-00000012"
    unfinished.mkdir()
    (unfinished / "state.safetensors").write_bytes(b"{")
    (unfinished / "old" / "deeper").mkdir(parents=True)
    with started(2, tmp_path / "log", main, [*run, "--save-every-steps", "1"]) as running:
        assert running.codes(200) == [0, 0], running.said()
    there = sorted(path.name for path in (tmp_path / "cut" / "checkpoints").iterdir())
    assert there == [f"step-{step:08d}" for step in steps[-2:]]
    assert encoder_bytes(tmp_path / "cut") == encoder_bytes(runs / "two")


def test_a_run_is_not_continued_by_processes_that_its_batches_do_not_split_over(
    arrays: Path, tmp_path: Path, runs: Path
):
    shutil.copytree(runs / "two", tmp_path / "two")
    said = run_byol(3, words(arrays, tmp_path / "two", **PROBED), tmp_path / "log", expected=2)
    assert said.count("Micro-batches of 8 images do not split over 3 processes") == 1


def ends_with_nan(images: Path, out: Path) -> int:
    """Leaves what the failed step has left of everything that is trained."""
    savers: list[Saver] = []

    class Watched(Saver):
        def restore(self) -> int:
            savers.append(self)
            return super().restore()

    run_module.Saver = Watched
    model = ModelConfig(projection_size=8, projection_hidden_size=16)
    config = small_config(out, model=model, save_every_steps=1, keep_checkpoints=9)
    try:
        pretrain(Small(), images, config)
    except TrainingError as failure:
        tensors = savers[0].trained.state_dict() | optimizer_tensors(savers[0].optimizer)
        torch.save((str(failure), tensors), out / f"{os.environ['RANK']}.pt")
        return failure.exit_code
    return 0


@pytest.mark.parametrize(
    ("fault", "says"),
    [("nan", "loss of step 3 is nan"), ("slope", "gradient of step 3 is not finite, though its loss is")],
)
def test_a_nan_on_one_process_stops_all_before_anything_moves(
    arrays: Path, tmp_path: Path, fault: str, says: str
):
    """In the loss, or only in a gradient: of weights, target, statistics and optimizer nothing has moved."""
    with started(2, tmp_path / "log", ends_with_nan, arrays, tmp_path / "a", FAULT=f"{fault} 7") as running:
        assert running.codes() == [4, 4], running.said()
    saved = state(tmp_path / "a")
    kinds = ("learner.online.", "learner.target.", "learner.predictor.", "running_var", "optimizer.")
    assert all(any(kind in name for name in saved) for kind in kinds)
    for rank in (0, 1):
        message, tensors = torch.load(tmp_path / "a" / f"{rank}.pt")
        assert says in message
        assert tensors.keys() == saved.keys()
        for name, value in tensors.items():
            assert torch.equal(value, saved[name]), name


@pytest.mark.parametrize("fault", ["failure", "SIGKILL"])
def test_what_happens_to_one_process_ends_the_others_in_time(photos: Path, tmp_path: Path, fault: str):
    """With workers, which have its connections too: they must not outlive it."""
    run = words(photos, tmp_path / "a", data__in_memory=False, workers=1, save_every_steps=2)
    with started(2, tmp_path / "log", main, run, FAULT=f"{fault} 14") as running:
        codes, said = running.codes(), running.said()
    assert codes == [70, 70 if fault == "failure" else -9], said
    named = r"Process 1 \(pid \d+ on .+\) of the 2 processes has ended or stands still after step 6;"
    assert len(re.findall(named, said)) == 1
    if fault == "failure":
        traceback = said.index("Traceback (most recent call last)")
        assert traceback < said.index("fallen off the bus") < said.index("Process 1 (pid")
        assert said.count("Traceback") == 1
    assert max((tmp_path / "a" / "checkpoints").glob("step-*")).name == "step-00000006"


def is_stopped(pid: int | None) -> bool:
    """Whether a process stands still by a signal."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def test_a_process_that_stands_still_in_a_step_is_noticed_in_a_minute_and_named(arrays: Path, tmp_path: Path):
    """It is stopped in its seventh step, by SIGSTOP; the other one waits in the same step, and says so a few
    seconds after its time is over."""
    run = words(arrays, tmp_path / "a", save_every_steps=2)
    with started(2, tmp_path / "log", main, run, FAULT="SIGSTOP 14") as running:
        while not is_stopped(running.processes[1].pid) and running.processes[0].is_alive():
            time.sleep(0.05)
        began = time.monotonic()
        while "stands still" not in running.said() and running.processes[0].is_alive():
            time.sleep(0.05)
        took = time.monotonic() - began
        running.processes[0].join(100)
        code, said = running.processes[0].exitcode, running.said()
        assert running.processes[1].is_alive()
        named = f"Process 1 (pid {running.processes[1].pid} on "
    assert code == 70, said
    assert said.count(named) == 1
    assert "of the 2 processes has ended or stands still after step 6;" in said.partition(named)[2]
    assert took < 60 + 5, took
    assert max((tmp_path / "a" / "checkpoints").glob("step-*")).name == "step-00000006"


def waits(sleep: float) -> int:
    with World.join("cpu", hours=15 / 3600) as world:
        if world.rank == 1:
            time.sleep(sleep)
        try:
            world.wait()
        except ProcessLost as lost:
            os._exit(9 if "Process 1 (pid" in str(lost) else 8)
    return 0


def test_a_process_that_stands_still_is_noticed(tmp_path: Path):
    with started(2, tmp_path / "log", waits, 300.0) as running:
        running.processes[0].join(200)
        assert running.processes[0].exitcode == 9, running.said()


def stands_still(where: str) -> int:
    """Process 2 stops before a meeting or in a step behind it. The exit code tells whom the others name."""
    world_module.STILL = 5.0
    with World.join("cpu", hours=15 / 3600) as world:
        world.wait()
        world.expect(0)
        if world.rank == 2 and where == "before a step":
            os.kill(os.getpid(), signal.SIGSTOP)
        try:
            with world.with_one_voice():
                world.wait()
                if world.rank == 2:
                    os.kill(os.getpid(), signal.SIGSTOP)
                distributed.all_reduce(torch.ones(1))
        except ProcessLost as lost:
            named = re.findall(r"rocess (\d) \(pid", str(lost))
            time.sleep(0 if world.rank else 10)  # the store ends with process 0; torchrun's does not
            os._exit(9 if named == ["2"] else 8)
    return 0


@pytest.mark.parametrize("where", ["before a step", "in a step"])
def test_of_three_processes_both_others_name_the_one_that_stands_still(tmp_path: Path, where: str):
    """Before a step it is the one behind, in a step the one that is silent when the others tell they wait."""
    with started(3, tmp_path / "log", stands_still, where) as running:
        for process in running.processes[:2]:
            process.join(200)
        assert [process.exitcode for process in running.processes] == [9, 9, None], running.said()


def test_what_fails_alike_is_told_once(arrays: Path, tmp_path: Path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "someone's work").touch()
    said = run_byol(2, words(arrays, tmp_path / "a"), tmp_path / "log", expected=2)
    assert said.count("does not hold a run") == 1
    odd = words(arrays, tmp_path / "b", batch_size=20, optim__accumulation=3)
    said = run_byol(2, odd, tmp_path / "log", expected=2)
    assert said.count("byol train: batch_size 20 does not split into 3 micro-batches") == 1
    assert not (tmp_path / "b").exists()


def test_unreadable_images_of_every_process_are_listed_once(photos: Path, tmp_path: Path):
    images = tmp_path / "photos"
    shutil.copytree(photos, images)
    broken = sorted(images.glob("*/*.png"))[::9]
    for path in broken:
        path.write_bytes(b"not a picture, but long enough to be one at first sight" * 9)
    flags = {"data__in_memory": False, "epochs": 3, "knn__hold_out_share": 0}
    listed = []
    for count in (1, 2):
        run_byol(count, words(images, tmp_path / str(count), data__max_bad=0.5, **flags), tmp_path / "log")
        bad = (tmp_path / str(count) / "bad_files.jsonl").read_text().splitlines()
        listed.append(sorted(json.loads(line)["name"] for line in bad))
    assert listed[0] == listed[1]
    assert len(listed[0]) == len(broken)
    said = run_byol(2, words(images, tmp_path / "few", **flags), tmp_path / "few.log", expected=3)
    assert said.count("cannot be read") == 1


def torchrun(run: list[str], *flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *flags]
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(
        [*command, "-m", "byol", *run],
        capture_output=True, text=True, timeout=800, env=environment, start_new_session=True,
    )  # fmt: skip


def test_torchrun_starts_again_after_a_kill_and_the_run_is_the_undisturbed_one(
    arrays: Path, tmp_path: Path, runs: Path
):
    run = words(arrays, tmp_path / "cut", save_every_steps=3, **PROBED)
    done = torchrun(run, "--max-restarts=1", FAULT="SIGKILL 46")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("continued at step 9") == 1
    assert done.stdout.count("next  ") == 1
    assert losses(tmp_path / "cut") == losses(runs / "two")
    assert encoder_bytes(tmp_path / "cut") == encoder_bytes(runs / "two")


@pytest.mark.parametrize("flags", [["--epochs", "-1"], ["--epochz", "1"]], ids=["a value", "a name"])
def test_wrong_flags_are_told_once_under_torchrun(arrays: Path, tmp_path: Path, flags: list[str]):
    """Each process finds them; the last to come must be heard, and not ended by the first one's end."""
    done = torchrun(["train", str(arrays), "--out", str(tmp_path / "a"), *flags])
    assert done.returncode != 0
    assert done.stderr.count("epochs is -1" if "-1" in flags else "Unrecognized options:") == 1, done.stderr
    assert "exitcode  : 2" in " ".join(done.stderr.split()).replace("exitcode : 2", "exitcode  : 2")


def test_what_one_process_alone_can_do_is_refused_once_under_torchrun(arrays: Path, tmp_path: Path):
    images = ["--data", str(arrays), "--out", str(tmp_path / "labels.csv")]
    done = torchrun(["predict", str(tmp_path / "classifier.safetensors"), *images])
    assert done.stderr.count("WORLD_SIZE is 2") == 1, done.stderr
    assert "Start it without torchrun" in done.stderr


def test_a_collapse_under_torchrun_is_told_and_reported_whole(tmp_path: Path):
    """Rank 0 writes the report when all have stopped: the end of the others must not cut it short."""
    images = tmp_path / "black.npy"
    np.save(images, np.zeros((64, 20, 20, 3), dtype=np.uint8))
    run = words(images, tmp_path / "a", on_collapse="stop")
    done = torchrun(run)
    assert done.stderr.count("The encoder has collapsed") == 1, done.stderr
    page = (tmp_path / "a" / "report.html").read_text()
    assert "collapsed" in page
    assert page.rstrip().endswith("</html>")

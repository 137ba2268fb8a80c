"""A run's folder: its names, its lock, and plans and checkpoints that do not belong to it."""

import ast
import importlib
import json
import multiprocessing
import os
import platform
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from processes import run_byol, started, words
from small_runs import StopsItself, Tiny, seeded, small_config

import byol
from byol.cli import main
from byol.encoders.encoder import digest
from byol.train.config import ModelConfig
from byol.train.run_folder import FORMAT, RunFolder
from byol.world import World


def test_every_file_name_of_a_run_is_spelt_once_in_the_package(tmp_path):
    names = {path.name for path in vars(RunFolder(tmp_path)).values()} - {tmp_path.name, ".lock"}
    assert len(names) == 15
    spelt: dict[str, list[str]] = {name: [] for name in names}
    for path in Path(byol.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and node.value in names:
                spelt[node.value].append(str(path))
    others_have_it_too = {"checkpoints", "tensorboard"}  # torch.hub's folder, and the library of that name
    places = {name: len(spelt[name]) for name in names - others_have_it_too}
    assert places == dict.fromkeys(places, 1)


def test_a_forked_process_that_outlives_its_run_does_not_hold_the_folder(tmp_path):
    """As the workers of a run that was killed do for a moment."""
    fork = multiprocessing.get_context("fork")
    begun = fork.Event()
    worker = fork.Process(target=lambda: (begun.set(), time.sleep(60)))
    with RunFolder(tmp_path).held():
        worker.start()
        assert begun.wait(60)
    try:
        with RunFolder(tmp_path).held():
            assert worker.is_alive()
    finally:
        worker.kill()
        worker.join()


def test_a_forked_process_that_ends_leaves_the_folder_to_its_run(tmp_path):
    worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(0,))
    with RunFolder(tmp_path).held():
        worker.start()
        worker.join()
        with pytest.raises(byol.CheckpointError, match="in use"), RunFolder(tmp_path).held():
            pass


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_of_two_processes_that_train_in_one_folder_the_second_is_refused_and_does_no_harm(photos, tmp_path):
    """Real ones, with workers. The first is killed then, and the same command continues it at once."""
    flags = {"epochs": 40, "data__in_memory": False, "workers": 1, "save_every_steps": 1}
    run_byol(1, words(photos, tmp_path / "whole", **flags), tmp_path / "log")
    run = words(photos, tmp_path / "a", **flags)
    with started(1, tmp_path / "first", main, run) as first:
        while not list((tmp_path / "a").glob("checkpoints/step-*")):
            assert first.processes[0].is_alive(), first.said()
            time.sleep(0.01)
        os.kill(first.processes[0].pid, signal.SIGSTOP)  # so that it is not over before the second has begun
        said = run_byol(1, run, tmp_path / "second", expected=2)
        assert f"in use by process {first.processes[0].pid} on {platform.node()} since" in said
        first.processes[0].kill()
        first.processes[0].join()
        said = run_byol(1, run, tmp_path / "third")
    assert "continued at step" in said
    whole, killed = (tmp_path / name / "encoder.safetensors" for name in ("whole", "a"))
    assert whole.read_bytes() == killed.read_bytes()


def stopped(folder: Path, images: Path, **changes: object) -> dict:
    """A run that was stopped and saved in its third step; returns what its plan.json holds."""
    with pytest.raises(byol.Stopped):
        byol.pretrain(seeded(StopsItself, 5), images, small_config(folder, **changes))
    return json.loads((folder / "plan.json").read_text())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("total_steps", 28),
        ("base_lr", 9.0),
        ("seed", 1),
        ("batch_size", 16),
        ("images", 8),
        ("precision", "bf16"),
    ],
)
def test_a_number_that_was_edited_in_a_plan_is_noticed(tmp_path, arrays, field, value):
    stored = stopped(tmp_path, arrays)
    assert stored["plan"][field] != value
    stored["plan"][field] = value
    (tmp_path / "plan.json").write_text(json.dumps(stored))
    with pytest.raises(byol.CheckpointError, match=r"plan\.json"):
        byol.pretrain(seeded(), arrays, small_config(tmp_path))


def forged(folder: Path, stored: dict) -> None:
    """A plan.json as somebody writes it who knows how its checksum is made."""
    stored.pop("blake2b", None)
    (folder / "plan.json").write_text(json.dumps({**stored, "blake2b": digest({}, stored)}))


def test_a_forged_plan_does_not_fit_the_checkpoints(tmp_path, arrays):
    stored = stopped(tmp_path, arrays)
    stored["plan"]["total_steps"] = 28
    forged(tmp_path, stored)
    with pytest.raises(byol.CheckpointError, match="another plan"):
        byol.pretrain(seeded(), arrays, small_config(tmp_path))


@pytest.mark.parametrize("begun", [True, False])
def test_a_plan_that_names_code_as_its_encoder_never_executes_it(tmp_path, arrays, monkeypatch, begun):
    (tmp_path / "evil.py").write_text(
        f"import pathlib\npathlib.Path({str(tmp_path / 'executed')!r}).touch()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    folder, config = tmp_path / "run", small_config(tmp_path / "run", model=ModelConfig(width=2))
    byol.pretrain("convnet", arrays, config)
    stored = json.loads((folder / "plan.json").read_text())
    if not begun:
        shutil.rmtree(folder / "checkpoints")
        (folder / "encoder.safetensors").unlink()
    forged(folder, {**stored, "plan": {**stored["plan"], "encoder": "evil:system", "encoder_options": {}}})
    with pytest.raises(byol.CheckpointError, match=r"'evil:system' .*--encoder"):
        byol.pretrain("convnet", arrays, config)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("written", "advice"), [(FORMAT - 1, "with the byol that wrote it"), (FORMAT + 1, "Upgrade byol")]
)
def test_a_plan_of_another_version_is_refused_with_what_reads_it(tmp_path, arrays, written, advice):
    stored = stopped(tmp_path, arrays)
    forged(tmp_path, {**stored, "format": written})
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(byol.CheckpointError, match=rf"plan\.json has format {written}; .*{advice}"):
        byol.pretrain(seeded(), arrays, small_config(tmp_path))
    assert sorted(tmp_path.rglob("*")) == before


def test_a_plan_of_another_version_with_which_nothing_was_done_is_made_anew(tmp_path, arrays):
    stored = stopped(tmp_path, arrays)
    shutil.rmtree(tmp_path / "checkpoints")
    forged(tmp_path, {**stored, "format": FORMAT - 1})
    byol.pretrain(seeded(), arrays, small_config(tmp_path))
    assert json.loads((tmp_path / "plan.json").read_text())["format"] == FORMAT


def test_a_plan_with_a_value_of_another_kind_is_a_sentence(tmp_path, arrays):
    stored = stopped(tmp_path, arrays)
    stored["plan"]["total_steps"] = "many"
    forged(tmp_path, stored)
    with pytest.raises(byol.CheckpointError, match=r"plan\.json cannot be read \(total_steps is 'many'"):
        byol.pretrain(seeded(), arrays, small_config(tmp_path))


def test_a_checkpoint_of_another_run_is_not_taken_up(tmp_path, arrays):
    stopped(tmp_path / "a", arrays)
    stopped(tmp_path / "b", arrays, seed=1)
    shutil.rmtree(tmp_path / "b" / "checkpoints")
    shutil.copytree(tmp_path / "a" / "checkpoints", tmp_path / "b" / "checkpoints")
    with pytest.raises(byol.CheckpointError, match="another plan"):
        byol.pretrain(seeded(), arrays, small_config(tmp_path / "b", seed=1))


def test_a_run_is_not_continued_with_one_image_for_each_process(tmp_path, arrays):
    """Micro-batches of 8: they split over 4 processes, and over 8 only into single images."""
    stopped(tmp_path, arrays)
    images, cpu = byol.open_images(arrays), torch.device("cpu")
    for count in (3, 8):
        with pytest.raises(byol.ConfigError, match=f"over {count} processes into equal parts of at least 2"):
            RunFolder(tmp_path).stored_plan(small_config(tmp_path), images, World(0, count, cpu))
    plan = RunFolder(tmp_path).stored_plan(small_config(tmp_path), images, World(0, 4, cpu))
    assert plan.micro_batch_size == 8


def test_a_run_that_was_moved_and_is_told_other_things_is_continued(tmp_path, arrays):
    """What may differ takes effect: how often is logged and saved, how many checkpoints stay.
    The folder's new name is not UTF-8.
    """
    stopped(tmp_path / "a", arrays)
    folder = (tmp_path / "a").rename(tmp_path / os.fsdecode(b"b\xff"))
    changes = {"log_every_steps": 1, "save_every_steps": 2, "keep_checkpoints": 3}
    run = byol.pretrain(Tiny(), arrays, small_config(folder, **changes))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [2, *range(4, 15)]
    assert sorted(path.name for path in run.folder.glob("checkpoints/*")) == [
        "step-00000010", "step-00000012", "step-00000014",
    ]  # fmt: skip
    assert byol.load_encoder(folder, net=Tiny()).checksum() == run.encoder.checksum()


def test_a_run_may_be_anywhere_whatever_the_folders_are_called_and_whether_they_are_there(tmp_path, arrays):
    """It is stopped, continued, reported and judged there, as one under a plain name is. The longest name
    that a folder can have is one of them.
    """
    images = tmp_path / "photos, Größe 1" / "图 片.npz"
    images.parent.mkdir()
    shutil.copy(arrays, images)
    out = tmp_path / "not there yet" / "naïve #1 & 50%" / ("x" * 255) / "実験"
    stopped(out, images)
    run = byol.pretrain(seeded(), images, small_config(out))
    assert (
        run.encoder.checksum()
        == byol.pretrain(seeded(), arrays, small_config(tmp_path / "b")).encoder.checksum()
    )
    assert byol.load_encoder(out, net=Tiny()).checksum() == run.encoder.checksum()
    assert main(["report", str(out)]) == 0
    assert "実験" in (out / "report.html").read_text(encoding="utf-8")


def without_permission(folder: Path, words: list[str]) -> None:
    """Call byol there as somebody who may not write; root may everywhere."""
    os.chdir(folder)  # before: that one may not enter the folders above
    if os.getuid() == 0:
        os.setgroups([])
        os.setuid(65534)
    sys.exit(main(words))


def test_a_folder_that_may_not_be_written_to_is_one_sentence(tmp_path, arrays, capfd):
    """A new run in such a folder, or below it; a run that somebody else has stopped there."""
    shutil.copy(arrays, tmp_path / "images.npz")
    (tmp_path / "closed").mkdir()
    stopped(tmp_path / "run", arrays)
    importlib.import_module("byol.commands.train")  # as the modules themselves may be closed to others
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    folders = [path for path in (tmp_path, *tmp_path.rglob("*")) if path.is_dir()]
    for folder in folders:
        folder.chmod(0o555)
    try:
        for out in ("closed", "closed/a", "run"):
            flags = words(Path("images.npz"), Path(out), encoder="convnet", model__width=2)
            capfd.readouterr()
            fork = multiprocessing.get_context("fork")
            process = fork.Process(target=without_permission, args=(tmp_path, flags))
            process.start()
            process.join(100)
            said = f"The run's folder {out} cannot be used: Permission denied. Choose another --out."
            assert capfd.readouterr().err == f"byol train: {said}\n"
            assert process.exitcode == 2
    finally:
        for folder in folders:
            folder.chmod(0o755)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before

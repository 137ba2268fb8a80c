"""Metrics in other programs: the numbers of metrics.jsonl, once each, and never at the run's expense."""

import json
import shutil
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from small_runs import Tiny, seeded, small_config, stopping

import byol
from byol.errors import ConfigError, Stopped

pytest.importorskip("tensorboard", reason="pip install 'byol[tensorboard]'")
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

Curves = dict[str, list[tuple[int, float]]]
TENSORBOARD = {"log": ("tensorboard",)}


@pytest.fixture(scope="module")
def noise() -> byol.Images:
    generator = np.random.default_rng(0)
    labels = np.arange(80) % 4
    pixels = generator.integers(0, 100, (80, 20, 20, 3)) + 30 * labels[:, None, None, None]
    return byol.open_images(pixels.astype(np.uint8), labels=labels)


def curves_of_metrics(run: Path) -> Curves:
    found: Curves = defaultdict(list)
    for text in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        line = json.loads(text)
        for name, value in line.items():
            if name != "step" and not isinstance(value, str):
                found[name].append((line["step"], value))
    return dict(found)


def curves_of_tensorboard(run: Path) -> Curves:
    reader = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    reader.Reload()
    return {tag: [(one.step, one.value) for one in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}


def assert_same_curves(ours: Curves, theirs: Curves) -> None:
    assert ours.keys() == theirs.keys()
    for name, points in ours.items():
        assert [step for step, _ in points] == [step for step, _ in theirs[name]], name
        values, others = ([value for _, value in some] for some in (points, theirs[name]))
        assert values == pytest.approx(others, rel=1e-6), name


def test_tensorboard_reads_the_numbers_of_metrics_jsonl(noise, tmp_path):
    byol.pretrain(seeded(), noise, small_config(tmp_path / "a", **TENSORBOARD))
    curves = curves_of_metrics(tmp_path / "a")
    assert {"loss", "lr", "tau", "epoch", "knn_top1", "representation_std"} <= curves.keys()
    assert len(curves["loss"]) > 5
    assert_same_curves(curves, curves_of_tensorboard(tmp_path / "a"))


def test_curves_of_a_run_that_is_continued_are_those_of_one_run(noise, tmp_path):
    config = small_config(tmp_path / "a", save_every_steps=4, **TENSORBOARD)
    with pytest.raises(Stopped):
        byol.pretrain(stopping(seeded(), 18), noise, config)
    run = byol.pretrain(seeded(), noise, config)
    assert_same_curves(curves_of_metrics(run.folder), curves_of_tensorboard(run.folder))


def test_steps_that_are_done_again_are_in_a_curve_once(noise, tmp_path):
    """As after a kill: the metrics are ahead of the last checkpoint."""
    config = small_config(tmp_path / "a", save_every_steps=6, **TENSORBOARD)
    run = byol.pretrain(seeded(), noise, config)
    first = curves_of_tensorboard(run.folder)
    shutil.rmtree(max((run.folder / "checkpoints").iterdir()))
    (run.folder / "encoder.safetensors").unlink()
    byol.pretrain(seeded(), noise, config)
    again = curves_of_tensorboard(run.folder)
    assert len(list((run.folder / "tensorboard").iterdir())) == 2
    assert again["loss"] == first["loss"]
    assert_same_curves(curves_of_metrics(run.folder), again)


def test_a_logger_that_comes_late_gets_the_lines_before_too(noise, tmp_path):
    run = byol.pretrain(seeded(), noise, small_config(tmp_path / "a"))
    byol.pretrain(seeded(), noise, small_config(tmp_path / "a", **TENSORBOARD))
    assert_same_curves(curves_of_metrics(run.folder), curves_of_tensorboard(run.folder))


LIBRARY = """
import json, pathlib, time
HERE = pathlib.Path(__file__).parent

class Run:
    def __init__(self, name): self.name, self.count = name, 0
    def log(self, metrics, step):
        {log}
        self.count += 1
        with (HERE / "seen.jsonl").open("a") as file:
            file.write(json.dumps({{"run": self.name, "step": step, **metrics}}) + "\\n")
    def finish(self): pass

def init(project, name, config, resume, embed): return Run(name)
"""


def library(folder: Path, monkeypatch: pytest.MonkeyPatch, log: str = "pass") -> Path:
    """Put a small trackio that writes what it gets to a file before any other; returns that file."""
    (folder / "trackio.py").write_text(LIBRARY.format(log=log), encoding="utf-8")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "trackio", raising=False)
    return folder / "seen.jsonl"


def test_a_logger_that_fails_warns_once_and_the_others_and_the_run_go_on(
    noise, tmp_path, monkeypatch, caplog
):
    seen = library(tmp_path, monkeypatch, "if self.count == 3: raise OSError('the server is gone')")
    config = small_config(tmp_path / "a", log=("trackio", "tensorboard"))
    run = byol.pretrain(seeded(), noise, config)
    warnings = [message for message in caplog.messages if "trackio" in message]
    assert len(warnings) == 1
    assert "the server is gone" in warnings[0]
    assert len(seen.read_text().splitlines()) == 3
    assert (run.folder / "encoder.safetensors").exists()
    assert_same_curves(curves_of_metrics(run.folder), curves_of_tensorboard(run.folder))


def test_a_logger_that_cannot_even_begin_is_a_warning(noise, tmp_path, caplog):
    run = byol.pretrain(seeded(), noise, small_config(tmp_path / "a", epochs=1))
    (run.folder / "tensorboard").write_text("in the way")
    byol.pretrain(seeded(), noise, small_config(tmp_path / "a", epochs=1, **TENSORBOARD))
    assert len([message for message in caplog.messages if "tensorboard" in message]) == 1


def test_training_does_not_wait_for_a_logger(noise, tmp_path, monkeypatch):
    """Here each line is taken only when the encoder is saved, which is when all steps are done."""
    wait = (
        f"while not pathlib.Path({str(tmp_path / 'a' / 'encoder.safetensors')!r}).exists(): time.sleep(0.01)"
    )
    wait = wait.replace("while not", "while step and not")  # what is told before training is taken at once
    seen = library(tmp_path, monkeypatch, wait)
    byol.pretrain(seeded(), noise, small_config(tmp_path / "a", log=("trackio",)))
    steps = [json.loads(line)["step"] for line in seen.read_text().splitlines()]
    assert steps == sorted(steps)
    assert len(steps) == len((tmp_path / "a" / "metrics.jsonl").read_text().splitlines())


def test_a_run_keeps_its_name_in_another_program_when_it_is_continued(noise, tmp_path, monkeypatch):
    """And another run in a folder of the same name gets another one."""
    seen = library(tmp_path, monkeypatch)
    for folder in (tmp_path / "1" / "a", tmp_path / "2" / "a"):
        config = small_config(folder, epochs=1, log=("trackio",))
        with pytest.raises(Stopped):
            byol.pretrain(stopping(seeded(), 8), noise, config)
        byol.pretrain(seeded(), noise, config)
    names = [json.loads(line)["run"] for line in seen.read_text().splitlines()]
    assert len(set(names)) == 2
    assert names == sorted(names, key=[*dict.fromkeys(names)].index)
    assert all(name.startswith("a-") for name in names)


def test_a_library_that_is_missing_is_a_sentence_before_the_run(noise, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(ConfigError, match="pip install mlflow"):
        byol.pretrain(Tiny(), noise, small_config(tmp_path / "a", log=("tensorboard", "mlflow")))
    assert not (tmp_path / "a").exists()


def test_an_unknown_logger_is_named_with_those_that_there_are(tmp_path):
    with pytest.raises(ConfigError, match=r"log is .*'tensorbord'.* expected .*tensorboard.*trackio"):
        small_config(tmp_path, log=("tensorbord",))

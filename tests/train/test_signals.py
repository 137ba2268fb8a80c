"""A stopped run saves what is done, whatever it was at, and its continuation is the undisturbed run."""

import io
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image, PngImagePlugin
from processes import SERVER
from small_runs import StopsItself, Tiny, seeded, small_config, stopping
from torch import Tensor

import byol
from byol.data.readers import folder
from byol.train.config import DataConfig, ModelConfig, OptimConfig
from byol.train.signals import StopSignals

STREAMED = DataConfig(in_memory=False)


class At:
    """Calls a function once: at its so-many-th call."""

    def __init__(self, call: int, trouble: Callable[[], None]) -> None:
        self.call, self.trouble, self.calls = call, trouble, 0

    def __call__(self) -> None:
        self.calls += 1
        if self.calls == self.call:
            self.trouble()


def within(out: Path, trouble: Callable[[], None]) -> Callable[[], None]:
    """Calls a function when the run has begun: what is read before is looked at, and not trained on."""
    return lambda: trouble() if (out / "plan.json").exists() else None


class Picture(PngImagePlugin.PngImageFile):
    """Meets trouble when it is decoded."""

    meets: Callable[[], None] = staticmethod(lambda: None)

    def load(self) -> Any:
        meets, self.meets = self.meets, lambda: None  # Pillow calls it again for every conversion
        meets()
        return super().load()


class Pictures:
    """A dataset of 40 pictures; whenever it gives one, or whenever that is decoded, it calls `trouble`."""

    def __init__(self, decoding: bool = False) -> None:
        self.trouble: Callable[[], None] = lambda: None
        self.decoding = decoding
        self.targets = [number % 2 for number in range(40)]

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        stream = io.BytesIO()
        pixels = np.random.default_rng(index).integers(0, 256, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(stream, "PNG")
        stream.seek(0)
        picture = Picture(stream)
        if self.decoding:
            picture.meets = self.trouble
        else:
            self.trouble()
        return picture, self.targets[index]


class Meets(Tiny):
    """Calls a function at one of its training passes."""

    def __init__(self, at_pass: int, trouble: Callable[[], None]) -> None:
        super().__init__()
        self.trouble = At(at_pass, trouble)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and torch.is_grad_enabled():
            self.trouble()
        return super().forward(x)

    def __deepcopy__(self, memo: dict) -> Tiny:
        copy = Tiny()
        copy.load_state_dict(self.state_dict())
        return copy


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def encoder_of(out: Path, images: Any, config: byol.TrainConfig) -> bytes:
    byol.pretrain(seeded(), images, replace(config, out=str(out)))
    return (out / "encoder.safetensors").read_bytes()


def bad_of(out: Path) -> str:
    return (out / "bad_files.jsonl").read_text() if (out / "bad_files.jsonl").exists() else ""


@pytest.mark.parametrize("decoding", [False, True], ids=["in the dataset", "in the decoder"])
@pytest.mark.parametrize("in_memory", [False, True])
def test_a_signal_while_an_image_is_read_is_not_a_bad_image(tmp_path, in_memory, decoding):
    """The handler raised in the reader, which took that for a bad image: a substitute was trained on.

    All images may be bad, since a list that grows too long is looked through again.
    """
    config = small_config(tmp_path, epochs=1, data=DataConfig(in_memory=in_memory, max_bad=1))
    dataset = Pictures(decoding)
    images = byol.open_images(dataset)
    dataset.trouble = within(tmp_path / "undisturbed", counter := At(0, terminate))
    undisturbed = encoder_of(tmp_path / "undisturbed", images, config)
    # 40 are read for the first look, then 36 to be kept, or 8 for each of 4 steps. The stop is heard before
    # the next one is read; behind the last of them comes a step.
    calls = (20, 41, 60, 76) if in_memory else (20, 45, 48, 56)
    assert counter.calls == (76 if in_memory else 72)
    for call in calls:
        out = tmp_path / str(call)
        dataset.trouble = within(out, At(call, terminate))
        with pytest.raises(byol.Stopped):
            byol.pretrain(seeded(), images, replace(config, out=str(out)))
        assert bad_of(out) == ""
        assert encoder_of(out, images, config) == undisturbed


@pytest.fixture(params=["files", "parquet"])
def read_by_a_library(request, tmp_path, photos, monkeypatch):
    """Images, and a list of one function, which is called whenever a file or a row group is read."""
    met: list[Callable[[], None]] = [lambda: None]
    whose, name = (folder, "regular_file") if request.param == "files" else (pq.ParquetFile, "iter_batches")
    read = getattr(whose, name)

    def meeting(*words: Any, **options: Any) -> Any:
        met[0]()
        return read(*words, **options)

    monkeypatch.setattr(whose, name, meeting)
    if request.param == "files":
        return byol.open_images(photos), met
    cells = [{"bytes": path.read_bytes(), "path": path.name} for path in sorted(photos.rglob("*.png"))]
    pq.write_table(pa.table({"image": cells}), tmp_path / "photos.parquet", row_group_size=1)
    return byol.open_images(tmp_path / "photos.parquet"), met


def test_a_signal_while_a_file_is_read_is_not_a_bad_image(tmp_path, read_by_a_library):
    images, met = read_by_a_library
    config = small_config(tmp_path, epochs=1, data=replace(STREAMED, max_bad=1), workers=0)
    met[0] = within(tmp_path / "undisturbed", counter := At(0, terminate))
    undisturbed = encoder_of(tmp_path / "undisturbed", images, config)
    assert counter.calls >= 72
    for call in (20, 45, 48, 56):  # in the first look, in a step, and the last image of each of two
        out = tmp_path / str(call)
        met[0] = within(out, At(call, terminate))
        with pytest.raises(byol.Stopped):
            byol.pretrain(seeded(), images, replace(config, out=str(out)))
        assert bad_of(out) == ""
        assert encoder_of(out, images, config) == undisturbed


def test_a_signal_while_a_budget_is_measured_ends_the_run(tmp_path):
    dataset = Pictures()
    images = byol.open_images(dataset)
    dataset.trouble = counter = At(0, terminate)
    assert images.uniform_size() == (20, 20)
    dataset.trouble = At(counter.calls + 20, terminate)
    model = ModelConfig(width=2, projection_hidden_size=16)
    with pytest.raises(byol.Stopped, match="before a step was done"):
        byol.pretrain("convnet", images, small_config(tmp_path / "a", epochs=None, budget="5m", model=model))
    assert not (tmp_path / "a").exists()


def test_before_the_first_step_nothing_is_saved_and_corrected_settings_are_planned_anew(tmp_path, photos):
    dataset = Pictures()
    images = byol.open_images(dataset)
    for batch_size in (8, 16):
        kill = At(1, terminate)
        dataset.trouble = lambda kill=kill: kill() if (tmp_path / "plan.json").exists() else None
        with pytest.raises(byol.Stopped, match="before a step was done") as stopped:
            byol.pretrain(seeded(), images, small_config(tmp_path, batch_size=batch_size, data=STREAMED))
        assert stopped.value.exit_code == 75
        assert f"batch_size: {batch_size}" in (tmp_path / "config.yaml").read_text()
    run = byol.pretrain(seeded(), photos, small_config(tmp_path, batch_size=4))  # and other images
    assert run.plan.batch_size == 4


def test_a_signal_while_pictures_are_read_for_scoring_saves_without_reading_on(tmp_path):
    """Of a run that is continued: a new one reads them before its first step."""
    dataset = Pictures()
    images = byol.open_images(dataset)
    config = small_config(tmp_path, save_every_steps=1)
    with pytest.raises(byol.Stopped, match="saved at step"):
        byol.pretrain(stopping(seeded(), 6), images, config)
    net, passes, reads = seeded(), [], []
    net.register_forward_pre_hook(lambda module, inputs: passes.append(module.training))

    def in_the_look() -> None:
        reads.append(sum(passes) >= 4)  # all pictures were read before, to be kept in memory
        if sum(reads) == 3:
            terminate()

    dataset.trouble = in_the_look
    with pytest.raises(byol.Stopped, match="saved at step 5 of 9"):
        byol.pretrain(net, images, config)
    assert sum(reads) == 3
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "knn_top1" in line] == [0]
    assert byol.pretrain(seeded(), images, config).score is not None


# While workers are waited for


def children() -> list[Any]:
    return multiprocessing.active_children()


@pytest.mark.parametrize("trouble", ["stopped", "killed"])
def test_steps_that_are_done_are_saved_when_a_worker_fails(tmp_path, photos, trouble):
    """Waiting for one that stands still heard no signal, and nothing was saved of the run of a dead one."""
    optim = OptimConfig(name="lars", accumulation=2)
    config = small_config(tmp_path, workers=1, epochs=4, optim=optim, data=STREAMED, save_every_steps=1000)

    def fail() -> None:
        for worker in children():
            os.kill(worker.pid, signal.SIGSTOP if trouble == "stopped" else signal.SIGKILL)
        if trouble == "stopped":
            threading.Timer(1.0, terminate).start()

    with pytest.raises(byol.ByolError) as failure:
        byol.pretrain(seeded(Meets, 10, fail), photos, replace(config, out=str(tmp_path / "a")))
    assert failure.value.exit_code == (75 if trouble == "stopped" else 70)
    assert list((tmp_path / "a" / "checkpoints").glob("step-*"))
    assert encoder_of(tmp_path / "a", photos, config) == encoder_of(tmp_path / "b", photos, config)


# Impatience

TWICE = """
import os, signal, time
from byol.train.signals import StopSignals

with StopSignals():
    for sent in range({count}):
        os.kill(os.getpid(), signal.{name})
        print(sent, flush=True)
"""


@pytest.mark.parametrize(
    ("name", "count", "code"), [("SIGINT", 2, -signal.SIGINT), ("SIGTERM", 3, -signal.SIGTERM)]
)
def test_impatient_signals_end_the_process_at_once(name, count, code):
    program = TWICE.format(name=name, count=count)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.stdout.split() == [str(sent) for sent in range(count - 1)]
    assert done.returncode == code
    assert ("KeyboardInterrupt" in done.stderr) == (name == "SIGINT")


@pytest.fixture(scope="module")
def undisturbed(arrays: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The encoder of a run that nobody stopped."""
    out = tmp_path_factory.mktemp("undisturbed")
    return encoder_of(out, arrays, small_config(out))


def impatient(out: Path, images: Path, signals: int, moment: str) -> None:
    """A run that SIGTERM stops in step 5, and that is sent the others while it writes that checkpoint.

    To be called in a process that has not computed before: OpenMP's threads do not survive a fork.
    """
    left, (what, where) = iter(range(signals - 1)), moment.split()

    def watch(event: str, arguments: tuple) -> None:
        if event == what and where in str(arguments[0]):
            for _ in left:
                terminate()

    def begin() -> None:
        sys.addaudithook(watch)
        terminate()

    try:
        byol.pretrain(seeded(Meets, 9, begin), images, small_config(out, save_every_steps=2))
    except byol.Stopped as stopped:
        sys.exit(stopped.exit_code)


@pytest.mark.parametrize(
    ("signals", "moment"),
    [(2, "open manifest.json"), (3, "os.mkdir .tmp-"), (3, "open manifest.json"), (3, "os.rename .tmp-")],
)
def test_a_second_sigterm_lets_a_save_finish_and_a_third_ends_it_without_harm(
    tmp_path, arrays, undisturbed, signals, moment
):
    out = tmp_path / "a"
    process = SERVER.Process(target=impatient, args=(out, arrays, signals, moment))
    process.start()
    process.join(100)
    process.kill()  # one that hangs
    process.join()
    assert process.exitcode == (75 if signals == 2 else -signal.SIGTERM)
    saved = sorted(int(path.name[5:]) for path in (out / "checkpoints").glob("step-*"))
    assert saved == ([4, 5] if signals == 2 else [2, 4])
    assert encoder_of(out, arrays, small_config(out, save_every_steps=2)) == undisturbed
    assert not list((out / "checkpoints").glob(".*"))


def interrupt_twice() -> None:
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("decoding", [False, True], ids=["in the dataset", "in the decoder"])
def test_what_swallows_every_exception_does_not_swallow_the_second_ctrl_c(tmp_path, decoding):
    dataset = Pictures(decoding)
    images = byol.open_images(dataset)
    dataset.trouble = within(tmp_path, interrupt_twice)
    with pytest.raises(KeyboardInterrupt):
        byol.pretrain(seeded(), images, small_config(tmp_path, data=STREAMED))


def test_what_reads_files_does_not_swallow_the_second_ctrl_c(tmp_path, read_by_a_library):
    images, met = read_by_a_library
    met[0] = within(tmp_path / "a", interrupt_twice)
    with pytest.raises(KeyboardInterrupt):
        byol.pretrain(seeded(), images, small_config(tmp_path / "a", data=STREAMED))


def test_the_first_ctrl_c_is_answered_at_once(tmp_path, arrays, capfd):
    with pytest.raises(byol.Stopped):
        byol.pretrain(seeded(StopsItself, 5, signal.SIGINT), arrays, small_config(tmp_path))
    assert "Ctrl-C again" in capfd.readouterr().err


def test_the_handlers_of_before_are_back_afterwards():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)]
    with StopSignals() as stop:
        assert signal.getsignal(signal.SIGTERM) != before[1]
        stop.check()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)] == before

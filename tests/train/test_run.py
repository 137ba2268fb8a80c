"""A whole run: what it leaves behind, how it continues, how it ends when something is wrong."""

import json
import os
import platform
import re
import shutil
import signal
import time
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_runs import StopsItself, Tiny, seeded, small_config, stopping
from torch import nn

import byol
from byol.train.config import DataConfig, ExtraConfig, KnnConfig, ModelConfig, OptimConfig
from byol.train.plan import plan_run
from byol.train.run_folder import RunFolder
from byol.train.setup import Setup, split


def state_of(folder: Path) -> dict[str, str]:
    """The SHA-256 of every byte that a finished run computed: of its last checkpoint and its encoder.

    Digests, because pytest takes minutes to show where megabytes differ.
    """
    last = max((folder / "checkpoints").glob("step-*"))
    files = {"state": last / "state.safetensors", "encoder": folder / "encoder.safetensors"}
    return {name: sha256(file.read_bytes()).hexdigest() for name, file in files.items()}


def losses_of(folder: Path) -> list[tuple[float, ...]]:
    """What was logged of each step: it, its loss, rate and tau."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [tuple(line[name] for name in ("step", "loss", "lr", "tau")) for line in lines if "loss" in line]


@pytest.mark.parametrize(
    ("route", "workers"),
    [("resident", 0), ("photos", 0), ("photos", 2)],
    ids=["in memory", "photos", "photos, 2 workers"],
)
@pytest.mark.parametrize("optimizer", ["lars", "adamw"])
def test_a_stopped_and_resumed_run_gives_the_same_bytes_as_an_uninterrupted_one(
    tmp_path, photos, arrays, route, workers, optimizer
):
    images = photos if route == "photos" else arrays
    optim = OptimConfig(name=optimizer, accumulation=2)
    config = small_config(tmp_path / "a", workers=workers, optim=optim, log_every_steps=1)
    whole = byol.pretrain(seeded(), images, config)
    # Two passes of two micro-batches a step: in the first half of step 5, which is given up.
    with pytest.raises(byol.Stopped) as stopped:
        byol.pretrain(seeded(StopsItself, 18), images, replace(config, out=str(tmp_path / "b")))
    assert stopped.value.exit_code == 75
    assert "saved at step 4" in str(stopped.value)
    resumed = byol.pretrain(seeded(), images, replace(config, out=str(tmp_path / "b")))
    assert resumed.plan.total_steps == whole.plan.total_steps > 5
    assert state_of(tmp_path / "a") == state_of(tmp_path / "b")
    assert losses_of(tmp_path / "a") == losses_of(tmp_path / "b")
    assert len(losses_of(tmp_path / "a")) == whole.plan.total_steps


@pytest.mark.parametrize("route", ["resident", "photos"])
def test_a_run_with_extra_views_resumes_bit_for_bit(tmp_path, photos, arrays, route):
    """Its other predictors and what the optimizer remembers of them are in the checkpoint."""
    images, extra = photos if route == "photos" else arrays, ExtraConfig(local=2, cutout=1, targets=1)
    config = small_config(tmp_path / "a", extra=extra, optim=OptimConfig(name="adamw", accumulation=2))
    byol.pretrain(seeded(), images, config)
    # Five passes with gradients of two micro-batches a step: in step 4, which is given up.
    with pytest.raises(byol.Stopped, match="saved at step 3"):
        byol.pretrain(seeded(StopsItself, 33), images, replace(config, out=str(tmp_path / "b")))
    saved = load_file(tmp_path / "b" / "checkpoints" / "step-00000003" / "state.safetensors")
    assert "learner.extra_predictors.cutout.0.weight" in saved
    byol.pretrain(seeded(), images, replace(config, out=str(tmp_path / "b")))
    assert state_of(tmp_path / "a") == state_of(tmp_path / "b")


class Repeats(Tiny):
    """A block that is used four times, so that its tensors have four names."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(12, 12), nn.PReLU())] * 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = super().forward(x)
        for block in self.blocks:
            x = x + block(x)
        return x


class Ties(Tiny):
    """Two layers of one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(12, 12), nn.Linear(12, 12)
        self.second.weight = self.first.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(super().forward(x)).relu())


class Cuts(Tiny):
    """A network cut before its last layer, kept beside itself."""

    def __init__(self) -> None:
        super().__init__()
        self.cut = nn.Sequential(*list(self.layers.children())[:-1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.cut(x).flatten(1)


@pytest.mark.parametrize("kind", [Repeats, Ties, Cuts])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_tensors_under_several_names_are_saved_and_resumed_bit_for_bit(tmp_path, arrays, kind, optimizer):
    config = small_config(tmp_path / "a", epochs=1, optim=OptimConfig(name=optimizer))
    byol.pretrain(seeded(kind), arrays, config)
    with pytest.raises(byol.Stopped, match="saved at step 3"):
        byol.pretrain(stopping(seeded(kind), 7), arrays, replace(config, out=str(tmp_path / "b")))
    resumed = byol.pretrain(seeded(kind), arrays, replace(config, out=str(tmp_path / "b")))
    assert state_of(tmp_path / "a") == state_of(tmp_path / "b")
    net = resumed.encoder.net
    assert len(set(map(id, net.parameters()))) < len(list(net.named_parameters(remove_duplicate=False)))


def test_the_number_of_workers_does_not_change_a_run(tmp_path, photos):
    for workers in (0, 1, 3):
        byol.pretrain(seeded(), photos, small_config(tmp_path / str(workers), workers=workers))
    assert state_of(tmp_path / "0") == state_of(tmp_path / "1") == state_of(tmp_path / "3")


def test_a_run_may_continue_with_another_number_of_workers(tmp_path, photos):
    """None, then two, then one."""
    data = DataConfig(in_memory=False)
    byol.pretrain(seeded(), photos, small_config(tmp_path / "a", data=data))
    for workers, at_pass in ((0, 5), (2, 4)):  # of two passes a step
        config = small_config(tmp_path / "b", data=data, workers=workers)
        with pytest.raises(byol.Stopped):
            byol.pretrain(seeded(StopsItself, at_pass), photos, config)
    byol.pretrain(seeded(), photos, small_config(tmp_path / "b", data=data, workers=1))
    assert state_of(tmp_path / "a") == state_of(tmp_path / "b")
    assert losses_of(tmp_path / "a") == losses_of(tmp_path / "b")


def test_another_seed_gives_another_run(tmp_path, arrays):
    for seed in (0, 1):
        byol.pretrain(
            "convnet", arrays, small_config(tmp_path / str(seed), seed=seed, model=ModelConfig(width=2))
        )
    assert state_of(tmp_path / "0") != state_of(tmp_path / "1")


def test_a_finished_run_holds_everything_that_is_promised(tmp_path, arrays):
    run = byol.pretrain(
        "convnet", arrays, small_config(tmp_path, model=ModelConfig(width=2, projection_hidden_size=16))
    )
    names = {path.name for path in tmp_path.iterdir()}
    assert names >= {
        "config.yaml", "plan.json", "env.json", "metrics.jsonl", "scores.jsonl",
        "checkpoints", "encoder.safetensors", "encoder.json",
    }  # fmt: skip
    assert not [name for name in names if name.startswith(".tmp")]
    assert run.plan.images + run.plan.hold_out_images == 64
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [2, 4, 6, 8, 10, 12, 14]
    assert all(0 <= line["loss"] <= 8 and 0 <= line["data_wait"] <= 1 for line in lines if "loss" in line)
    assert (
        lines[-1]["knn_top1"] == json.loads((tmp_path / "scores.jsonl").read_text())["top1"] == run.score.top1
    )
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2


def test_a_finished_run_started_again_trains_no_further_and_gives_the_same_encoder(tmp_path, arrays):
    config = small_config(tmp_path)
    first = byol.pretrain(seeded(), arrays, config)
    before = (
        state_of(tmp_path),
        (tmp_path / "metrics.jsonl").read_text(),
        (tmp_path / "scores.jsonl").read_text(),
    )
    again = byol.pretrain(seeded(), arrays, config)
    assert before == (
        state_of(tmp_path),
        (tmp_path / "metrics.jsonl").read_text(),
        (tmp_path / "scores.jsonl").read_text(),
    )
    assert again.score.top1 == first.score.top1
    sound = (tmp_path / "encoder.safetensors").read_bytes()
    for damaged in (sound[:100], sound[:-1] + bytes([sound[-1] ^ 1])):
        (tmp_path / "encoder.safetensors").write_bytes(damaged)
        byol.pretrain(seeded(), arrays, config)
        assert (tmp_path / "encoder.safetensors").read_bytes() == sound


@pytest.mark.parametrize("labelled", [True, False])
def test_a_finished_run_says_that_it_was_finished_already_and_looks_at_nothing_again(
    tmp_path, arrays, labelled, capsys
):
    pixels, labels = (np.load(arrays)[name] for name in ("images", "labels"))
    images = byol.open_images(pixels, labels=labels if labelled else None)
    byol.pretrain(seeded(), images, small_config(tmp_path))
    assert "already" not in capsys.readouterr().err
    net, passes = seeded(), []
    net.register_forward_pre_hook(lambda module, inputs: passes.append(len(inputs[0])))
    byol.pretrain(net, images, small_config(tmp_path))
    assert sum(passes) <= 6  # to learn the shape of the representation
    assert "finished   already, at step" in capsys.readouterr().err


@pytest.mark.parametrize(
    "lost", [["scores.jsonl", "encoder.safetensors"], ["encoder.safetensors"], ["scores.jsonl"]]
)
def test_scores_survive_a_kill_between_the_last_checkpoint_and_the_end(tmp_path, arrays, lost):
    """A kill there leaves the last checkpoint, and of what is written behind it a part."""
    first = byol.pretrain(seeded(), arrays, small_config(tmp_path))
    metrics = (tmp_path / "metrics.jsonl").read_bytes()
    for name in lost:
        (tmp_path / name).unlink()
    again = byol.pretrain(seeded(), arrays, small_config(tmp_path))
    assert [json.loads(line)["top1"] for line in (tmp_path / "scores.jsonl").read_text().splitlines()] == [
        first.score.top1
    ]
    assert again.score.top1 == first.score.top1
    assert metrics == (tmp_path / "metrics.jsonl").read_bytes()
    assert (tmp_path / "encoder.safetensors").exists()


def test_a_run_is_shown_in_a_line(tmp_path, arrays):
    run = byol.pretrain(seeded(), arrays, small_config(tmp_path))
    assert repr(run) == f"Run({str(tmp_path)!r}: Tiny, 14 steps, kNN {100 * run.score.top1:.1f} %)"


def test_the_encoder_of_a_run_is_the_network_that_was_given_trained_in_place(tmp_path, arrays):
    net = seeded()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    run = byol.pretrain(net, arrays, small_config(tmp_path))
    assert run.encoder.net is net
    assert not torch.equal(before["layers.0.weight"], net.state_dict()["layers.0.weight"])
    images = torch.randint(0, 256, (5, 3, 20, 20), dtype=torch.uint8)
    loaded = byol.load_encoder(tmp_path, net=Tiny())
    assert torch.equal(loaded(images), run.encoder(images))
    assert run.encoder(images).shape == (5, 12)


@pytest.mark.parametrize("hidden_layer", ["0", None])
def test_a_hidden_layer_of_an_own_network_is_what_the_encoder_gives(tmp_path, arrays, hidden_layer):
    """Also by default: a classifier's logits are not what is trained."""

    class Classifier(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(Tiny(), nn.Linear(12, 10))

    run = byol.pretrain(seeded(Classifier), arrays, small_config(tmp_path, hidden_layer=hidden_layer))
    assert run.encoder.info.features == 12
    encoder = byol.load_encoder(tmp_path, net=Classifier())
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    assert torch.equal(encoder(images), run.encoder(images))


def test_the_hold_out_set_and_the_training_images_are_all_images(tmp_path, arrays):
    run = byol.pretrain(seeded(), arrays, small_config(tmp_path))
    train, hold_out = split(64, run.plan)
    assert len(hold_out) == run.plan.hold_out_images == 6
    assert sorted(train.tolist() + hold_out.tolist()) == list(range(64))


@pytest.mark.parametrize("same", [True, False])
def test_the_knn_score_is_that_of_hold_out_images_among_training_images(tmp_path, same):
    """Every hold-out image has one twin in training, of its class or of another: all are right, or none."""
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (60, 16, 16, 3), dtype=np.uint8)
    config = small_config(tmp_path / "a", knn=KnnConfig(hold_out_share=0.2, times=1, k=1))
    images = byol.open_images(pixels, labels=[0, 1] * 30)
    train, hold_out = split(60, Setup.of(seeded(), images, config).new_plan())
    classes = np.zeros(60, dtype=np.int64)
    classes[train] = generator.permutation(48) // 2
    pixels[hold_out] = pixels[train[:12]]
    classes[hold_out] = classes[train[:12]] if same else (classes[train[:12]] + 1) % 24
    run = byol.pretrain(seeded(), byol.open_images(pixels, labels=classes), config)
    assert (run.score.top1, run.score.test_images, run.score.train_images) == (float(same), 12, 48)


def test_accumulated_micro_batches_take_one_target_step_per_optimizer_step(tmp_path, arrays):
    runs = {
        parts: byol.pretrain(
            seeded(), arrays, small_config(tmp_path / str(parts), optim=OptimConfig(accumulation=parts))
        )
        for parts in (1, 2)
    }
    assert runs[1].plan.total_steps == runs[2].plan.total_steps
    last = {
        parts: json.loads((tmp_path / str(parts) / "metrics.jsonl").read_text().splitlines()[-2])
        for parts in (1, 2)
    }
    assert last[1]["tau"] == last[2]["tau"]
    assert last[1]["lr"] == last[2]["lr"]


def test_a_loss_that_is_not_finite_stops_before_the_weights_are_touched(tmp_path, arrays):
    class Poison(Tiny):
        passes = 0

        def forward(self, x):
            Poison.passes += self.training and torch.is_grad_enabled()
            return super().forward(x) * (float("nan") if Poison.passes > 8 else 1.0)

        def __deepcopy__(self, memo):
            copy = Tiny()
            copy.load_state_dict(self.state_dict())
            return copy

    net = seeded(Poison)
    with pytest.raises(byol.TrainingError) as failure:
        byol.pretrain(
            net, arrays, small_config(tmp_path, save_every_steps=1, knn=KnnConfig(hold_out_share=0, times=1))
        )
    assert "loss of step 4" in str(failure.value)
    assert "step-00000004" in str(failure.value)  # four steps (0 to 3) were done and saved
    assert failure.value.exit_code == 4
    saved = load_file(tmp_path / "checkpoints" / "step-00000004" / "state.safetensors")
    assert torch.equal(saved["learner.online.encoder.net.layers.0.weight"], net.layers[0].weight)


def test_a_gradient_that_is_not_finite_stops_before_the_weights_are_touched(tmp_path, arrays):
    class Steep(Tiny):
        def __init__(self):
            super().__init__()
            self.offset = nn.Parameter(torch.zeros(12))

        def forward(self, x):
            return super().forward(x) + self.offset.sqrt()  # at 0 the value is 0 and the slope infinite

    net = seeded(Steep)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    config = small_config(tmp_path, save_every_steps=1, knn=KnnConfig(hold_out_share=0, times=1))
    with pytest.raises(byol.TrainingError, match=r"gradient of step 0 .* No checkpoint had been written yet"):
        byol.pretrain(net, arrays, config)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not list(tmp_path.glob("checkpoints/*"))
    assert not (tmp_path / "encoder.safetensors").exists()


def test_whatever_a_rate_that_is_far_too_high_does_only_finite_states_are_saved(tmp_path, arrays):
    optim = OptimConfig(name="sgd", base_lr=1e8)
    config = small_config(tmp_path, save_every_steps=1, keep_checkpoints=20, optim=optim)
    with pytest.raises(byol.TrainingError, match="checkpoint") as failure:
        byol.pretrain("convnet", arrays, replace(config, model=ModelConfig(width=2)))
    assert failure.value.exit_code == 4
    for path in tmp_path.glob("checkpoints/step-*/state.safetensors"):
        assert all(value.isfinite().all() for value in load_file(path).values()), path
    assert not (tmp_path / "encoder.safetensors").exists()


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGTERM, 75),
        (signal.SIGINT, 130),
        (signal.SIGUSR1, 75),
        (signal.SIGUSR2, 75),
        (signal.SIGHUP, 75),
    ],
)
def test_a_signal_saves_and_leaves_with_its_exit_code(tmp_path, arrays, number, code):
    before = signal.getsignal(number)
    with pytest.raises(byol.Stopped) as stopped:
        byol.pretrain(seeded(StopsItself, 5, number), arrays, small_config(tmp_path))
    assert stopped.value.exit_code == code
    assert list((tmp_path / "checkpoints").glob("step-*"))
    assert signal.getsignal(number) == before


def test_continuing_with_other_settings_is_refused_by_name(tmp_path, arrays):
    with pytest.raises(byol.Stopped):
        byol.pretrain(seeded(StopsItself, 5), arrays, small_config(tmp_path))
    with pytest.raises(byol.CheckpointError, match=r"batch_size: 8 -> 16"):
        byol.pretrain(seeded(), arrays, small_config(tmp_path, batch_size=16))
    for field, value in {"base_tau": 0.5, "base_lr": 0.3}.items():
        with pytest.raises(byol.CheckpointError, match=rf"optim\.{field}: None -> {value}"):
            byol.pretrain(seeded(), arrays, small_config(tmp_path, optim=OptimConfig(**{field: value})))
    wider = ModelConfig(projection_size=16, projection_hidden_size=16)
    with pytest.raises(byol.CheckpointError, match=r"model\.projection_size: 8 -> 16"):
        byol.pretrain(seeded(), arrays, small_config(tmp_path, model=wider))


def test_continuing_with_other_images_is_refused(tmp_path, arrays, photos, monkeypatch):
    with pytest.raises(byol.Stopped):
        byol.pretrain(seeded(StopsItself, 5), arrays, small_config(tmp_path))
    with pytest.raises(byol.CheckpointError, match="other images"):
        byol.pretrain(seeded(), photos, small_config(tmp_path))
    with np.load(arrays) as held:
        np.savez(tmp_path / arrays.name, images=held["images"] ^ 1, labels=held["labels"])
    monkeypatch.chdir(arrays.parent)
    with pytest.raises(byol.Stopped):
        byol.pretrain(seeded(StopsItself, 5), arrays.name, small_config(tmp_path / "b"))
    monkeypatch.chdir(tmp_path)
    before, now = (byol.open_images(path).fingerprint() for path in (arrays, tmp_path / arrays.name))
    with pytest.raises(byol.CheckpointError, match=rf"images: .* \({before}\) -> others there \({now}\)"):
        byol.pretrain(seeded(), arrays.name, small_config(tmp_path / "b"))


def test_a_run_does_not_go_on_with_files_that_were_added_renamed_or_taken_away(tmp_path, photos):
    shutil.copytree(photos, tmp_path / "photos")
    config = small_config(tmp_path / "run")
    with pytest.raises(byol.Stopped):
        byol.pretrain(seeded(StopsItself, 3), tmp_path / "photos", config)
    one, other = tmp_path / "photos" / "dark" / "1.png", tmp_path / "photos" / "dark" / "1.jpg"
    for change, back, now in (
        (lambda: shutil.copy(one, other), other.unlink, "41 images"),
        (lambda: one.rename(other), lambda: other.rename(one), "others there"),
        (lambda: one.rename(tmp_path / "1.png"), lambda: (tmp_path / "1.png").rename(one), "39 images"),
    ):
        change()
        with pytest.raises(byol.CheckpointError, match=rf"other images \(images: 40 images in .* -> {now}"):
            byol.pretrain(seeded(), tmp_path / "photos", config)
        back()
    byol.pretrain(seeded(), tmp_path / "photos", config)


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path, arrays):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(byol.CheckpointError, match="does not hold a run"):
        byol.pretrain(seeded(), arrays, small_config(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_folder_in_use_by_another_run_is_refused(tmp_path, arrays):
    """By whom and since when: a lock that nobody's process holds any more is none."""
    holder = rf"in use by process {os.getpid()} on {re.escape(platform.node())} since {time.strftime('%Y')}-"
    in_use = pytest.raises(byol.CheckpointError, match=holder)
    with RunFolder(tmp_path).held(), in_use:
        byol.pretrain(seeded(), arrays, small_config(tmp_path))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", ["a link", "a second name of a file", "a pipe"])
def test_a_lock_that_is_something_else_is_a_sentence_and_stays_as_it_is(tmp_path, arrays, kind):
    (tmp_path / "run").mkdir()
    (tmp_path / "precious").write_text("work")
    lock = tmp_path / "run" / ".lock"
    {"a link": lambda: lock.symlink_to(tmp_path / "precious"), "a pipe": lambda: os.mkfifo(lock)}.get(
        kind, lambda: lock.hardlink_to(tmp_path / "precious")
    )()
    with pytest.raises(byol.ConfigError, match=r"cannot be used: .*--out"):
        byol.pretrain(seeded(), arrays, small_config(tmp_path / "run"))
    assert not RunFolder(tmp_path / "run").in_use()
    assert (tmp_path / "precious").read_text() == "work"


@pytest.mark.parametrize("name", ["train.log", "metrics.jsonl", "scores.jsonl", "bad_files.jsonl"])
def test_nothing_is_added_to_a_file_that_a_link_in_the_folder_leads_to(tmp_path, arrays, name):
    """As in a run of a stranger's that is continued here."""
    with pytest.raises(byol.Stopped):
        byol.pretrain(seeded(StopsItself, 5), arrays, small_config(tmp_path / "run"))
    (tmp_path / "precious").write_text("work")
    (tmp_path / "run" / name).unlink(missing_ok=True)
    (tmp_path / "run" / name).symlink_to(tmp_path / "precious")
    with pytest.raises(byol.ConfigError, match=rf"its {name}: it is a symbolic link.*--out"):
        byol.pretrain(seeded(), arrays, small_config(tmp_path / "run"))
    assert (tmp_path / "precious").read_text() == "work"


def test_a_name_that_no_folder_can_have_is_a_sentence(tmp_path, arrays):
    with pytest.raises(byol.ConfigError, match=r"cannot be used: File name too long.*--out"):
        byol.pretrain(seeded(), arrays, small_config(tmp_path / ("x" * 256)))


@pytest.mark.parametrize("in_memory", [True, False])
def test_unreadable_images_are_replaced_counted_listed_and_too_many_stop_the_run(tmp_path, in_memory, capsys):
    from PIL import Image

    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(20):
        Image.new("RGB", (20, 20), (number * 10, 0, 0)).save(folder / f"{number:02}.png")
    (folder / "07.png").write_bytes(b"not a picture")
    data = DataConfig(in_memory=in_memory, max_bad=0.1)
    byol.pretrain(seeded(), folder, small_config(tmp_path / "a", data=data))
    assert "; 1 unreadable image (1 x it is none of JPEG" in capsys.readouterr().err
    listed = [json.loads(line) for line in (tmp_path / "a" / "bad_files.jsonl").read_text().splitlines()]
    assert [entry["name"] for entry in listed] == ["07.png"]
    with pytest.raises(byol.DataError, match="1 of 20 images cannot be read"):
        byol.pretrain(seeded(), folder, small_config(tmp_path / "b", data=replace(data, max_bad=0.01)))


@pytest.mark.parametrize("in_memory", [True, False])
def test_files_that_go_or_change_after_they_were_found_are_listed_or_read_as_they_are(
    tmp_path, photos, in_memory
):
    folder = shutil.copytree(photos, tmp_path / "pictures")
    images = byol.open_images(folder)
    one, two, three, four = sorted(folder.glob("dark/*.png"))[:4]
    one.unlink()
    two.unlink()
    two.mkdir()
    three.write_bytes(three.read_bytes()[:100])
    four.unlink()
    four.write_bytes((folder / "light" / "0.png").read_bytes())  # another picture: it is read
    data = DataConfig(in_memory=in_memory, max_bad=0.1)
    byol.pretrain(seeded(), images, small_config(tmp_path / "a", data=data))
    listed = map(json.loads, (tmp_path / "a" / "bad_files.jsonl").read_text().splitlines())
    found = {line["name"]: line["reason"] for line in listed}
    assert found.keys() == {str(path.relative_to(folder)) for path in (one, two, three)}
    assert "No such file" in found[str(one.relative_to(folder))]
    assert "not a regular file" in found[str(two.relative_to(folder))]


def test_unreadable_images_of_the_hold_out_set_are_counted_and_listed_too(tmp_path, photos, capsys):
    pictures = shutil.copytree(photos, tmp_path / "pictures")
    config = small_config(tmp_path / "a", data=DataConfig(max_bad=0.1))
    _, hold_out = split(40, byol.pretrain(seeded(), pictures, config).plan)
    assert "listed in" not in capsys.readouterr().err
    name = byol.open_images(pictures).name(int(hold_out[0]))
    (pictures / name).write_bytes(b"not a picture")
    byol.pretrain(seeded(), pictures, replace(config, out=str(tmp_path / "b")))
    listed = [json.loads(line) for line in (tmp_path / "b" / "bad_files.jsonl").read_text().splitlines()]
    assert [entry["name"] for entry in listed] == [name]
    assert "1 unreadable image" in capsys.readouterr().err
    with pytest.raises(byol.DataError, match="1 of 40 images cannot be read"):
        byol.pretrain(seeded(), pictures, small_config(tmp_path / "c", data=DataConfig(max_bad=0.01)))


def test_signs_of_collapse_are_taken_from_all_classes(tmp_path):
    """The first 2,500 images are one and the same; the others show that nothing has collapsed."""
    images = np.random.default_rng(0).integers(0, 256, (3000, 8, 8, 3), dtype=np.uint8)
    images[:2500] = images[0]
    labels = [0] * 2500 + [1] * 500
    changes = {"image_size": 8, "batch_size": 256, "epochs": 0.1, "knn": KnnConfig(times=1)}
    byol.pretrain(seeded(), byol.open_images(images, labels=labels), small_config(tmp_path, **changes))
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["representation_effective_rank"] > 1.5


def test_scored_images_are_of_all_classes_however_these_alternate():
    from byol.train.monitor import sample

    rows = sample(torch.arange(10_000), 5_000, seed=0)
    assert len(set(rows.tolist())) == 5_000
    assert 2_000 < sum(rows % 2 == 0) < 3_000
    assert 2_000 < sum(rows < 5_000) < 3_000


def test_gray_images_are_trained_on_with_one_channel(tmp_path, photos):
    config = small_config(tmp_path, data=DataConfig(channels=1), model=ModelConfig(width=2))
    run = byol.pretrain("convnet", photos, config)
    assert run.encoder.info.channels == 1
    assert run.encoder(torch.zeros(2, 1, 16, 16)).shape == (2, 72)


def test_images_of_many_bands_are_trained_on(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (32, 5, 20, 20), dtype=np.uint8)
    run = byol.pretrain("convnet", images, small_config(tmp_path, model=ModelConfig(width=2)))
    assert run.encoder(torch.zeros(2, 5, 16, 16)).shape == (2, 72)


def test_a_rest_of_one_image_is_trained_on_and_one_image_is_scored(tmp_path, arrays):
    with np.load(arrays) as held:
        images = byol.open_images(held["images"][:18], labels=held["labels"][:18])
    config = small_config(tmp_path, epochs=2, knn=KnnConfig(hold_out_share=0.05, times=2, k=3))
    run = byol.pretrain("convnet", images, replace(config, model=ModelConfig(width=2)))
    assert (run.plan.images, run.plan.hold_out_images) == (17, 1)  # two batches and one image more
    assert run.plan.total_steps == 4
    assert run.score is not None
    scores = byol.evaluate(
        run.encoder, train=images.subset(range(17)), test=images.subset([17]), protocols=("knn", "linear")
    )
    assert all(score.top1 in (0.0, 1.0) for score in scores.values())


@pytest.mark.parametrize("labelled", [True, False])
def test_the_speed_of_a_draft_is_measured_without_a_trace(tmp_path, arrays, labelled):
    images = np.load(arrays)["images"] if not labelled else arrays
    config = small_config(tmp_path / "a", epochs=None, budget="10s")
    net = seeded()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    setup = Setup.of(net, images, config)
    speed = setup.speed(plan_run(replace(config, budget=None), setup.facts(), setup.world))
    assert 0 < speed.step < speed.spent
    assert 0 < speed.image < speed.spent
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not (tmp_path / "a").exists()


@pytest.mark.slow
def test_a_budget_of_time_sets_the_length_of_the_run(tmp_path, arrays):
    config = small_config(tmp_path, epochs=None, budget="20s", model=ModelConfig(width=2))
    run = byol.pretrain("convnet", arrays, config)
    assert run.plan.total_steps >= 10
    assert (tmp_path / "encoder.safetensors").exists()


def test_a_run_on_pictures_kept_shrunk_in_memory_resumes_bit_for_bit(tmp_path, photos):
    config = small_config(tmp_path / "a", epochs=6, save_every_steps=1000)
    whole = byol.pretrain(seeded(), photos, config)
    assert (whole.plan.in_memory, whole.plan.memory_side) == (True, 64)
    stopped = replace(config, out=str(tmp_path / "b"))
    with pytest.raises(byol.errors.Stopped):
        byol.pretrain(stopping(seeded(), 9), photos, stopped)
    byol.pretrain(seeded(), photos, stopped)
    one, other = (tmp_path / name / "encoder.safetensors" for name in "ab")
    assert one.read_bytes() == other.read_bytes()


def test_a_run_leaves_the_same_trajectory_as_ever(tmp_path, arrays):
    """Our own numbers, once: whoever changes order, crops, views, init, schedules or optimizer must say so
    here.
    """
    options = ("convolutions=5", "grids=[2]")  # what the encoder was when these numbers were written down
    model = ModelConfig(width=4, options=options, projection_hidden_size=16, projection_size=8)
    optim = OptimConfig(base_lr=2e-3, predictor_lr=1.0, weight_decay=0.05)
    byol.pretrain("convnet", arrays, small_config(tmp_path, kind="paper", model=model, optim=optim))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses == pytest.approx(TRAJECTORY, abs=2e-3)


TRAJECTORY = [4.225, 4.4742, 4.3575, 4.339, 4.5191, 4.0395, 4.4542]


@pytest.fixture(scope="module")
def finished(arrays, tmp_path_factory):
    return byol.pretrain(seeded(), arrays, small_config(tmp_path_factory.mktemp("finished") / "a"))


@pytest.mark.parametrize(
    "name", ["representation_alignment", "representation_retrieval", "knn_top1", "views", "loss"]
)
@pytest.mark.parametrize("value", [10**400, float("nan"), float("inf")], ids=["huge", "nan", "inf"])
def test_a_metric_that_makes_no_sense_does_not_stop_a_finished_run(tmp_path, arrays, finished, name, value):
    """As after a flipped bit: its line is left out, or shown for what it is."""
    run = finished
    shutil.copytree(run.folder, tmp_path / "a")
    config = small_config(tmp_path / "a")
    path = tmp_path / "a" / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert any(name in line for line in lines)
    path.write_text(
        "".join(json.dumps(line | ({name: value} if name in line else {})) + "\n" for line in lines)
    )
    again = byol.pretrain(seeded(), arrays, config)
    assert again.encoder.checksum() == run.encoder.checksum()
    assert again.score == run.score

"""Whether a run collapsed, diverged, was too short or learned: every failure is provoked and named."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_runs import seeded, small_config, stopping, untimed
from torch import nn

import byol
from byol.cli import main
from byol.train.config import KnnConfig, OptimConfig, TrainConfig
from byol.train.log import seen
from byol.train.monitor import Monitor, step_signs
from byol.train.outcome import trouble, verdict_of
from byol.train.setup import Setup, split
from byol.train.step import build_optimizer, steps

FOUR_LOOKS = KnnConfig(hold_out_share=0.1, times=4, k=3)


class Plain(nn.Sequential):
    """No BatchNorm: nothing keeps its representations apart."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(768, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU())


def metrics_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def collapsing(out: Path, **changes: object) -> TrainConfig:
    return small_config(
        out, epochs=8, knn=FOUR_LOOKS, optim=OptimConfig(name="sgd", base_lr=1000.0), **changes
    )


def test_a_collapsed_run_stops_saved_says_why_and_goes_on_only_when_told(tmp_path, arrays, capsys):
    for _ in range(2):  # the same command again does not train on either
        with pytest.raises(byol.CollapseError, match=r"std of .*0\.0\d+, 0\.[68]\d at step 0") as failure:
            byol.pretrain(seeded(Plain), arrays, collapsing(tmp_path))
        assert failure.value.exit_code == 5
        assert "--optim.base-lr" in str(failure.value)
        assert "--on-collapse warn" in str(failure.value)
        steps_saved = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
        assert steps_saved[-1] == f"step-{metrics_of(tmp_path)[-1]['step']:08d}"
        assert not (tmp_path / "encoder.safetensors").exists()
    run = byol.pretrain(seeded(Plain), arrays, collapsing(tmp_path, on_collapse="warn"))
    assert (tmp_path / "encoder.safetensors").exists()
    assert run.verdict.state in ("collapsed", "collapsing", "diverging")
    assert "warning    collapsed: " in capsys.readouterr().err


class Fading(nn.Module):
    """Tells images apart less with each pass that it is trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = Plain()
        self.passes: torch.Tensor
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.passes += self.training
        return 1 + self.plain(x) / (1 + self.passes) ** 2


def test_a_run_that_collapses_long_before_its_next_look_stops_by_its_metrics(tmp_path, arrays, capsys):
    looks = replace(FOUR_LOOKS, times=1)
    config = small_config(tmp_path, epochs=20, log_every_steps=10, knn=looks, hidden_layer="output")
    with pytest.raises(byol.CollapseError, match=r"std of at most .*e-05, 0\.0\d+ at step 0"):
        byol.pretrain(seeded(Fading), arrays, config)
    # Three lines from step 20 on, of 145 steps; the next look is at the end. The last line is of time alone.
    assert [line["step"] for line in metrics_of(tmp_path)] == [0, 10, 20, 30, 40, 40]
    byol.pretrain(seeded(Fading), arrays, replace(config, on_collapse="warn"))
    assert capsys.readouterr().err.count("warning    collapsed: ") == 1  # not at each of its lines


@pytest.mark.parametrize("kind", ["one", "black"])
def test_images_that_are_all_the_same_are_named_before_a_step_is_made(tmp_path, kind, capsys):
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3)) * (kind == "one")
    np.save(tmp_path / "images.npy", np.repeat(image[None].astype(np.uint8), 40, axis=0))
    words = ["train", str(tmp_path / "images.npy"), "--out", str(tmp_path / "run"), "--epochs", "2"]
    assert main([*words, "--model.width", "2", "--device", "cpu"]) == 5
    said = capsys.readouterr().err
    assert ("one and the same image" if kind == "one" else "blank") in said
    assert "all 40 images" in said
    assert not list((tmp_path / "run").glob("checkpoints/*"))


def test_images_most_of_which_are_the_same_are_named_after_a_run_that_was_too_short_as_well(tmp_path):
    images = np.zeros((40, 16, 16, 3), np.uint8)
    images[:2] = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3))
    run = byol.pretrain(seeded(), images, small_config(tmp_path, epochs=3))
    assert run.verdict.state == "too short"
    assert "only 3 of 40 images differ" in run.verdict.evidence
    assert "--epochs" in run.verdict.remedy
    assert "Give more different images." in run.verdict.remedy


def test_one_step_is_told_as_one(tmp_path, arrays, capsys):
    run = byol.pretrain(seeded(), arrays, small_config(tmp_path, epochs=0.15, knn=FOUR_LOOKS))
    assert run.plan.total_steps == 1
    assert "only 1 step of 8 images was made" in run.verdict.evidence
    assert "finished   1 step in " in capsys.readouterr().err


def test_twenty_five_steps_are_too_short(tmp_path, arrays):
    run = byol.pretrain(seeded(), arrays, small_config(tmp_path, epochs=3.5, knn=FOUR_LOOKS))
    assert run.plan.total_steps == 25
    assert run.verdict.state == "too short"
    assert "25 steps of 8 images" in run.verdict.evidence
    found = r"\d+ % of \d+ views find their partner among the others, \d+ % did at step 0"
    assert re.search(found, run.verdict.evidence)
    assert "--epochs" in run.verdict.remedy
    assert json.loads((tmp_path / "verdict.json").read_text()) == vars(run.verdict)
    written = [(tmp_path / name).stat().st_mtime_ns for name in ("verdict.json", "encoder.safetensors")]
    assert written == sorted(written)  # a run with an encoder has finished: no verdict would come


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_rate_a_hundred_times_too_high_diverges(tmp_path, arrays, optimizer):
    rate = {"adamw": 5.0, "sgd": 100.0}[optimizer]
    config = small_config(
        tmp_path,
        epochs=6,
        knn=FOUR_LOOKS,
        optim=OptimConfig(name=optimizer, base_lr=rate),
        on_collapse="warn",
    )
    run = byol.pretrain(seeded(), arrays, config)
    assert run.verdict.state == "diverging"
    assert "--optim.base-lr" in run.verdict.remedy


def test_batches_of_two_and_views_that_are_too_alike_are_named(tmp_path, arrays):
    views = byol.ViewConfig(
        crop_area=(1, 1), crop_ratio=(1, 1), jitter=0, grayscale=0, blur=(0, 0), solarize=(0, 0), flip=0
    )
    config = small_config(tmp_path, batch_size=2, epochs=4, knn=FOUR_LOOKS, views=views, image_size=20)
    run = byol.pretrain(seeded(), arrays, config)
    assert run.verdict.state == "slow"
    assert "100 % find it by their raw pixels" in run.verdict.evidence
    assert "batches of 2 images" in run.verdict.evidence
    assert "--views.crop-area" in run.verdict.remedy
    assert "--batch-size" in run.verdict.remedy


@pytest.mark.slow
def test_a_learner_without_predictor_whose_target_follows_at_once_has_collapsed(tmp_path, photos):
    """There is no setting for that: the loop is written by hand."""
    config = small_config(tmp_path, epochs=60, knn=FOUR_LOOKS, optim=OptimConfig("adamw", 0.05, base_tau=0.0))
    setup = Setup.of(seeded(), photos, config)
    plan = setup.new_plan()
    learner = setup.learner(plan)
    learner.predictor = nn.PReLU(init=1.0)  # one number to learn: nearly nothing
    encoder, rows = setup.encoder(learner, plan), split(len(setup.images), plan)
    monitor = Monitor(learner, encoder, setup.images, rows, plan, config.knn, lambda name, reason: None)
    lines = [monitor.look(0, {})]
    batches = setup.batches(rows[0], plan, learner)
    for result in steps(learner, batches, build_optimizer(learner, plan), plan):
        if result.step % 50 == 0:
            lines.append({"step": result.step, "loss": float(result.loss), **step_signs(learner)})
            lines.append(monitor.look(result.step, lines[0]))
    assert trouble(lines).state in ("collapsed", "collapsing")
    assert verdict_of(lines, plan).state in ("collapsed", "collapsing")
    assert "projections of different images" in verdict_of(lines, plan).evidence


def a_look(step: int, **signs: float) -> dict[str, Any]:
    """A look at a healthy run of the demo; what differs is given."""
    signs = {"std": 0.7, "rank": 160.0, "alignment": 0.17, "retrieval": 0.26, **signs}
    representation = {"std": signs["std"], "effective_rank": signs["rank"], "alignment": signs["alignment"]}
    projection = {"std": signs.get("p_std", 0.88), "effective_rank": signs.get("p_rank", 31.0)}
    shared = {"retrieval": signs["retrieval"], "batch_alignment": 1.07}
    parts = {
        "representation": representation | shared,
        "projection": {"alignment": 0.1} | projection | shared,
    }
    named = {f"{part}_{sign}": value for part, values in parts.items() for sign, value in values.items()}
    return {"step": step, "views": 400, **named}


A_STEP = {"step": 250, "loss": 0.4, "target_distance": 0.07, "batch_std": 0.7, "target_std": 0.9}
BEGIN = a_look(0, std=0.65, rank=224, alignment=0.31, retrieval=0.22, p_std=0.8, p_rank=84.0)


@pytest.mark.parametrize(
    ("state", "signs"),
    [
        ("learning", {}),
        ("collapsed", {"std": 0.0013, "rank": 1.04}),  # a ResNet with GroupNorm at a high rate
        ("collapsed", {"p_std": 0.029, "p_rank": 2.2, "retrieval": 0.2}),  # no predictor and tau 0, 250 steps
        ("collapsing", {"p_std": 0.12, "p_rank": 5.5, "retrieval": 0.215}),  # the same after 44
        ("slow", {"alignment": 0.29, "retrieval": 0.195}),
    ],
)
def test_measured_signs_of_real_runs_get_their_name(tmp_path, arrays, state, signs):
    plan = replace(
        Setup.of(seeded(), arrays, small_config(tmp_path)).new_plan(), total_steps=250, batch_size=128
    )
    lines = [BEGIN, a_look(100), A_STEP, a_look(250, **signs)]
    verdict = verdict_of(lines, plan)
    assert verdict.state == state
    assert verdict.remedy
    assert (trouble(lines) is None) == (state in ("learning", "slow"))


@pytest.mark.parametrize(
    ("epochs", "retrieval", "advice"),
    [
        (
            1.6,
            0.26,
            "still pay: each image was seen 1.6 times",
        ),  # CIFAR-10 in 20 minutes: 24 epochs gave 20 points more
        (20.0, 0.26, "add little: 26 % were found at step 167"),
        (20.0, 0.23, "still pay: 23 % were found at step 167"),
    ],
)
def test_more_epochs_are_advised_after_few_of_them_and_while_retrieval_rises(
    tmp_path, arrays, epochs, retrieval, advice
):
    plan = Setup.of(seeded(), arrays, small_config(tmp_path)).new_plan()
    plan = replace(plan, total_steps=250, epochs=epochs)
    verdict = verdict_of([BEGIN, a_look(167, retrieval=retrieval), a_look(250)], plan)
    assert verdict.state == "learning"
    assert verdict.remedy.startswith(f"More epochs would {advice}")


def test_whether_more_epochs_pay_is_not_told_by_a_look_beside_itself_or_by_a_falling_number(tmp_path, arrays):
    plan = Setup.of(seeded(), arrays, small_config(tmp_path)).new_plan()
    plan = replace(plan, total_steps=250, epochs=20.0)
    once = verdict_of([BEGIN, a_look(250)], plan)
    assert once.state == "learning"
    assert "--knn.times" in once.remedy
    assert "add little" not in once.remedy
    fallen = a_look(250, retrieval=BEGIN["representation_retrieval"] - 0.02)
    late = a_look(167, retrieval=BEGIN["representation_retrieval"] - 0.02)
    assert "would add little" in verdict_of([BEGIN, late, fallen], plan).remedy


def test_looks_change_nothing_of_what_is_trained(tmp_path, arrays):
    """Dropout, BatchNorm and random crops: all stay as they are, however often a run is looked at."""
    for times in (1, 7):
        knn = KnnConfig(hold_out_share=0.1, times=times, k=3)
        byol.pretrain(seeded(), arrays, small_config(tmp_path / str(times), knn=knn))
    states = [load_file(tmp_path / times / "checkpoints/step-00000014/state.safetensors") for times in "17"]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    looks = ["representation_std" in line for line in metrics_of(tmp_path / "7")]
    assert sum(looks) == 8
    encoders = [(tmp_path / times / "encoder.safetensors").read_bytes() for times in "17"]
    assert encoders[0] == encoders[1]


def test_metrics_and_verdict_of_a_resumed_run_are_those_of_an_uninterrupted_one(tmp_path, arrays):
    byol.pretrain(seeded(), arrays, small_config(tmp_path / "a"))
    with pytest.raises(byol.Stopped):
        byol.pretrain(stopping(seeded(), 10), arrays, small_config(tmp_path / "b"))
    byol.pretrain(seeded(), arrays, small_config(tmp_path / "b"))
    found = [[untimed(line) for line in metrics_of(tmp_path / run)] for run in ("a", "b")]
    assert found[0] == found[1]
    assert [line["step"] for line in found[0] if "knn_top1" in line] == [0, 7, 14]
    assert (tmp_path / "a/verdict.json").read_text() == (tmp_path / "b/verdict.json").read_text()


def test_at_step_0_the_untrained_network_is_judged_with_the_statistics_of_the_images(tmp_path, arrays):
    """As its training passes see it: with BatchNorm's fresh statistics it would look worse than it is."""
    byol.pretrain(seeded(), arrays, small_config(tmp_path, knn=KnnConfig(hold_out_share=0, times=1)))
    net, images = seeded(), byol.open_images(arrays)
    net.layers[1].momentum = 1.0
    pixels = torch.stack([torch.from_numpy(images.array(index)).permute(2, 0, 1) for index in range(64)])
    prepared = byol.Views(16).prepare(pixels)
    net.eval()
    net.layers[1].train()
    with torch.no_grad():
        net(prepared)
        x = net.eval()(prepared)
    x = x / x.norm(dim=1, keepdim=True)
    expected = x.std(dim=0, correction=0).mean().item() * 12**0.5
    assert metrics_of(tmp_path)[0]["representation_std"] == pytest.approx(expected, rel=0.02)


def test_a_handful_of_images_is_no_score_and_more_come_with_their_interval(tmp_path, arrays):
    run = byol.pretrain(seeded(), arrays, small_config(tmp_path))
    assert "right for" in run.verdict.knn
    assert "of 6 images" in run.verdict.knn
    look = {"knn_top1": 0.61, "knn_low": 0.549, "knn_high": 0.671, "knn_images": 200}
    assert seen(look) == "kNN 61.0 % (55 to 67, 200 images)"


def test_a_run_is_compared_with_the_untrained_network_and_raw_pixels(tmp_path):
    """Classes that differ in brightness alone, which these views leave alone: pixels tell them all."""
    generator = np.random.default_rng(0)
    labels = np.arange(600) % 3
    images = (generator.integers(0, 60, (600, 16, 16, 3)) + 90 * labels[:, None, None, None]).astype(np.uint8)
    knn = KnnConfig(hold_out_share=0.3, times=1)
    run = byol.pretrain(
        seeded(), byol.open_images(images, labels=labels), small_config(tmp_path, epochs=0.2, knn=knn)
    )
    first, last = metrics_of(tmp_path)[0], metrics_of(tmp_path)[-1]
    assert last["over_pixels_low"] <= last["knn_top1"] - first["pixels_top1"] <= last["over_pixels_high"]
    assert last["over_untrained_low"] <= last["knn_top1"] - first["knn_top1"] <= last["over_untrained_high"]
    assert "180 images" in run.verdict.knn
    assert "the untrained network" in run.verdict.knn
    assert "raw pixels" in run.verdict.knn


def test_without_labels_the_progress_tells_how_many_views_find_their_partner(tmp_path, arrays, capsys):
    images = np.load(arrays)["images"]
    run = byol.pretrain(seeded(), images, small_config(tmp_path))
    assert run.verdict.knn == ""
    assert "% of 64 views find" in capsys.readouterr().err


def test_nothing_collapses_before_the_statistics_of_batchnorm_have_settled(tmp_path, arrays):
    """A deep network after one step, whose running statistics are nine tenths those of nothing, looked so."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 64, 3, 2, 1)]
    for _ in range(6):
        layers += [nn.BatchNorm2d(64), nn.ReLU(), nn.Conv2d(64, 64, 3, 1, 1)]
        nn.init.normal_(layers[-1].weight, std=0.004)
    net = nn.Sequential(*layers, nn.BatchNorm2d(64), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    knn = replace(FOUR_LOOKS, times=2)
    run = byol.pretrain(net, arrays, small_config(tmp_path, epochs=0.6, knn=knn, hidden_layer="output"))
    assert metrics_of(tmp_path)[-1]["representation_std"] < 0.05
    assert run.verdict.state == "too short"

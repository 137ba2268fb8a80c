"""A finished run goes on when its command is repeated with more epochs."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from small_runs import StopsItself, seeded, small_config

import byol
from byol.method.schedules import learning_rate, tau
from byol.train.config import OptimConfig
from byol.train.run_folder import RunFolder

OPTIM = OptimConfig(name="adamw", warmup_epochs=0.5)


def finished(folder: Path, images: Path, **changes: object) -> tuple[byol.TrainConfig, byol.Run]:
    config = small_config(folder, optim=OPTIM, **changes)
    return config, byol.pretrain(seeded(), images, config)


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_finished_run_goes_on_with_the_rates_of_the_longer_run(tmp_path, arrays, capsys):
    config, first = finished(tmp_path / "a", arrays)
    told = metrics(tmp_path / "a")
    capsys.readouterr()
    longer = byol.pretrain(seeded(), arrays, replace(config, epochs=4))
    old, new = first.plan.total_steps, longer.plan.total_steps
    assert new == int(4 * first.plan.images) // 8
    assert metrics(tmp_path / "a")[: len(told)] == told
    rates = [line for line in metrics(tmp_path / "a") if "lr" in line and line["step"] > old]
    assert [line["step"] for line in rates][-1] == new
    for line in rates:
        step = line["step"] - 1  # the rate of the step that was made
        whole = {"total_steps": new, "warmup_steps": first.plan.warmup_steps}
        assert line["lr"] == learning_rate(step, base_lr=first.plan.base_lr, batch_size=8, **whole)
        assert line["tau"] == tau(step, base_tau=first.plan.base_tau, total_steps=new)
    said = capsys.readouterr().err
    assert f"continued at step {old}" in said
    assert f"extended   finished at step {old}; from there on rate and tau are those of 4 epochs" in said
    rate = learning_rate(old, base_lr=first.plan.base_lr, batch_size=8, **whole)
    following = tau(old, base_tau=first.plan.base_tau, total_steps=new)
    assert f"lr jumps from 0 to {rate:.2g}, tau from 1 to {following:.4f}" in said
    assert longer.encoder.checksum() != first.encoder.checksum()


def test_a_longer_run_starts_from_the_last_weights(tmp_path, arrays):
    """One step at the end of a longer schedule moves no weight by more than that step's rate."""
    config, first = finished(tmp_path / "a", arrays)
    weights = {name: p.detach().clone() for name, p in first.encoder.net.named_parameters()}
    longer = byol.pretrain(seeded(), arrays, replace(config, epochs=2.2))
    assert longer.plan.total_steps == first.plan.total_steps + 1
    rate = metrics(tmp_path / "a")[-2]["lr"]
    moved = [
        float((weights[name] - p.detach()).abs().max()) for name, p in longer.encoder.net.named_parameters()
    ]
    assert 0 < max(moved) < 10 * rate  # AdamW: by about the rate


def test_a_longer_run_that_was_stopped_gives_the_same_bytes(tmp_path, arrays):
    config, _ = finished(tmp_path / "a", arrays)
    other, _ = finished(tmp_path / "b", arrays)
    whole = byol.pretrain(seeded(), arrays, replace(config, epochs=4))
    longer = replace(other, epochs=4)
    with pytest.raises(byol.Stopped):
        byol.pretrain(seeded(StopsItself, 8), arrays, longer)
    resumed = byol.pretrain(seeded(), arrays, longer)
    assert resumed.encoder.checksum() == whole.encoder.checksum()
    assert resumed.score == replace(whole.score, seconds=resumed.score.seconds)


def test_the_encoder_and_the_scores_of_the_shorter_run_are_kept(tmp_path, arrays):
    config, first = finished(tmp_path / "a", arrays)
    checksum = first.encoder.checksum()
    longer = byol.pretrain(seeded(), arrays, replace(config, epochs=4))
    kept = tmp_path / "a" / f"encoder-{first.plan.total_steps:08d}.safetensors"
    assert byol.load_encoder(kept, net=seeded()).checksum() == checksum
    scores = byol.evaluation.score.read_scores(tmp_path / "a" / "scores.jsonl")
    assert [score.encoder_checksum for score in scores] == [checksum, ""]
    assert longer.score == scores[-1]


def test_a_run_killed_between_its_last_checkpoint_and_its_encoder_is_not_finished(tmp_path, arrays, capsys):
    """The encoder of the shorter run is not taken for that of the longer one."""
    config, first = finished(tmp_path / "a", arrays)
    longer = replace(config, epochs=4)
    second = byol.pretrain(seeded(), arrays, longer)
    (tmp_path / "a" / "encoder.safetensors").unlink()
    third = byol.pretrain(seeded(), arrays, longer)
    assert third.encoder.checksum() == second.encoder.checksum() != first.encoder.checksum()
    assert byol.load_encoder(tmp_path / "a", net=seeded()).checksum() == second.encoder.checksum()


def test_the_longer_command_repeated_says_that_it_was_finished_already(tmp_path, arrays, capsys):
    config, _ = finished(tmp_path / "a", arrays)
    longer = replace(config, epochs=4)
    run = byol.pretrain(seeded(), arrays, longer)
    capsys.readouterr()
    again = byol.pretrain(seeded(), arrays, longer)
    assert "finished   already" in capsys.readouterr().err
    assert again.encoder.checksum() == run.encoder.checksum()
    assert again.plan == run.plan


def test_a_run_can_be_made_longer_more_than_once(tmp_path, arrays):
    config, first = finished(tmp_path / "a", arrays, epochs=1)
    for epochs in (2, 3):
        run = byol.pretrain(seeded(), arrays, replace(config, epochs=epochs))
        assert run.plan.total_steps == int(epochs * first.plan.images) // 8
    assert len([*(tmp_path / "a").glob("encoder-*.safetensors")]) == 2


@pytest.mark.parametrize(
    ("changes", "says"),
    [({"epochs": 1}, "epochs: 2 -> 1"), ({"epochs": 4, "seed": 1}, "seed: 0 -> 1"),
     ({"epochs": 2.01}, "epochs: 2 -> 2.01")],
)  # fmt: skip
def test_only_more_epochs_make_a_run_longer(tmp_path, arrays, changes, says):
    config, first = finished(tmp_path / "a", arrays)
    with pytest.raises(byol.CheckpointError, match=says):
        byol.pretrain(seeded(), arrays, replace(config, **changes))
    assert byol.load_encoder(tmp_path / "a", net=seeded()).checksum() == first.encoder.checksum()


def test_a_run_that_has_not_finished_is_finished_first(tmp_path, arrays):
    config = small_config(tmp_path / "a", optim=OPTIM)
    with pytest.raises(byol.Stopped):
        byol.pretrain(seeded(StopsItself, 6), arrays, config)
    with pytest.raises(byol.CheckpointError, match=r"epochs: 2 -> 4.*has finished"):
        byol.pretrain(seeded(), arrays, replace(config, epochs=4))
    assert RunFolder(tmp_path / "a").plan.exists()

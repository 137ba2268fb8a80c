"""The online probe beside a run: it learns, it is scored and resumed, and the encoder knows nothing of it."""

import copy
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from small_runs import StopsItself, Tiny, seeded, small_config, untimed
from torch.utils._python_dispatch import TorchDispatchMode

import byol
from byol.evaluation.online import OnlineProbe, ProbedLearner
from byol.method.views import ViewConfig
from byol.train.config import DataConfig, KnnConfig, OptimConfig, ProbeConfig
from byol.train.setup import split

ONLINE = ProbeConfig(online=True)


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of a finished run's last checkpoint."""
    return load_file(max((folder / "checkpoints").glob("step-*")) / "state.safetensors")


def metrics_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("optimizer", ["lars", "adamw"])
def test_the_encoder_learns_nothing_from_the_probe(tmp_path, arrays, optimizer):
    """Every byte of the learner is the same with and without it."""
    config = small_config(tmp_path / "without", optim=OptimConfig(name=optimizer, accumulation=2))
    byol.pretrain(seeded(), arrays, config)
    byol.pretrain(seeded(), arrays, replace(config, out=str(tmp_path / "with"), probe=ONLINE))
    without, beside = tensors_of(tmp_path / "without"), tensors_of(tmp_path / "with")
    learner = [name for name in without if name.startswith("learner.")]
    assert learner
    assert all(torch.equal(without[name], beside[name]) for name in learner)
    assert {name for name in beside if name.startswith("probe.")} == {
        "probe.classifier.weight",
        "probe.classifier.bias",
        "probe.correct_count",
        "probe.seen_count",
    }
    encoders = [(tmp_path / name / "encoder.safetensors").read_bytes() for name in ("without", "with")]
    assert encoders[0] == encoders[1]


@pytest.mark.parametrize("route", ["resident", "photos"])
def test_a_resumed_run_continues_the_probe_bit_for_bit(tmp_path, photos, arrays, route):
    images = photos if route == "photos" else arrays
    accumulate = OptimConfig(name="lars", accumulation=2)
    config = small_config(tmp_path / "a", probe=ONLINE, optim=accumulate, log_every_steps=4)
    byol.pretrain(seeded(), images, config)
    with pytest.raises(byol.Stopped, match="saved at step 6 "):  # between two lines of metrics
        byol.pretrain(seeded(StopsItself, 24), images, replace(config, out=str(tmp_path / "b")))
    assert tensors_of(tmp_path / "b")["probe.seen_count"] == 2 * 8  # of step 5 and 6, which no line tells
    byol.pretrain(seeded(), images, replace(config, out=str(tmp_path / "b")))
    whole, resumed = tensors_of(tmp_path / "a"), tensors_of(tmp_path / "b")
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    logged = [[untimed(line) for line in metrics_of(tmp_path / run)] for run in ("a", "b")]
    assert logged[0] == logged[1]
    assert "online_top1" in logged[0][-1]


def probed(images: byol.Images, **options: object) -> ProbedLearner:
    learner = byol.BYOL(seeded(), 16, None, 8, 16, **options)
    return ProbedLearner(learner, OnlineProbe(learner, images, seed=3))


@pytest.mark.parametrize("joint", [False, True], ids=["a pass per view", "joint pass"])
def test_gradient_is_that_of_cross_entropy_on_the_representation_of_view_1(arrays, joint):
    """As in the official code: a softmax on the stopped representation of view 1 alone, averaged over the
    batch.
    """
    images = byol.open_images(arrays)
    trained = probed(images, joint_batchnorm=joint)
    learner, classifier = trained.learner, trained.probe.classifier
    for network in (learner.online, learner.target):
        network.encoder.net.layers[3].p = 0.0  # no dropout, so that a second pass gives the same
    views = torch.rand(2, 8, 3, 16, 16)
    indices = torch.tensor([5, 1, 40, 63, 2, 0, 7, 7])
    alone = copy.deepcopy(learner)
    alone(*views).backward()
    loss, differentiated = trained(*views, indices)
    differentiated.backward()
    expected = {name: p.grad for name, p in alone.named_parameters()}
    for name, parameter in learner.named_parameters():
        assert (parameter.grad is None) == (expected[name] is None)
        assert parameter.grad is None or torch.equal(parameter.grad, expected[name])

    network = learner.online.encoder
    cross_entropy = (differentiated - loss).item()
    x = (network(torch.cat(list(views)))[:8] if joint else network(views[0])).detach().double().numpy()
    scores = x @ classifier.weight.detach().double().numpy().T
    chances = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    assert cross_entropy == pytest.approx(
        -np.log(chances[np.arange(8), images.labels[indices]]).mean(), rel=1e-4
    )
    chances[np.arange(8), images.labels[indices]] -= 1
    np.testing.assert_allclose(classifier.weight.grad, chances.T @ x / 8, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(classifier.bias.grad, chances.mean(axis=0), rtol=1e-4, atol=1e-6)


class Reads(TorchDispatchMode):
    """Counts how often a number is read from the device, which would wait for it."""

    count = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*arguments, **(options or {}))


def test_learning_never_waits_for_the_device(arrays):
    trained = probed(byol.open_images(arrays))
    with Reads() as reads:
        trained(*torch.rand(2, 8, 3, 16, 16), torch.arange(8))[1].backward()
    assert reads.count == 0
    with Reads() as reads:
        trained.probe.metrics()
    assert reads.count == 2


def test_the_probe_is_logged_and_scored_on_held_out_images(tmp_path, arrays):
    views = ViewConfig(jitter=0, solarize=(0, 0))  # the classes differ in their brightness
    optimizer = OptimConfig(name="adamw", base_lr=0.3)
    config = small_config(tmp_path, probe=ONLINE, epochs=12, optim=optimizer, views=views)
    run = byol.pretrain(seeded(), arrays, config)
    lines = metrics_of(tmp_path)
    learned = [line["online_train_top1"] for line in lines if "loss" in line]
    assert all(0 <= share <= 1 for share in learned)
    assert np.mean(learned[-20:]) > 0.4  # 0.25 by chance

    # The last score again, from what the run left behind.
    saved = tensors_of(tmp_path)
    source = byol.open_images(arrays)
    features = byol.embed(
        byol.load_encoder(tmp_path, net=Tiny()), source.subset(split(len(source), run.plan)[1])
    )
    predictions = (
        features.x @ saved["probe.classifier.weight"].numpy().T + saved["probe.classifier.bias"].numpy()
    ).argmax(axis=1)
    expected = (predictions == features.y).mean()
    assert lines[-1]["online_top1"] == pytest.approx(expected)
    scores = {
        score["protocol"]: score
        for score in map(json.loads, (tmp_path / "scores.jsonl").read_text().splitlines())
    }
    assert scores.keys() == {"knn", "online"}
    assert scores["online"]["top1"] == pytest.approx(expected)
    assert (scores["online"]["train_images"], scores["online"]["test_images"]) == (
        run.plan.images,
        run.plan.hold_out_images,
    )


def test_a_finished_run_started_again_leaves_the_scores_as_they_are(tmp_path, arrays):
    config = small_config(tmp_path, probe=ONLINE)
    for _ in range(2):
        run = byol.pretrain(seeded(), arrays, config)
        assert len((tmp_path / "scores.jsonl").read_text().splitlines()) == 2
        assert run.score.protocol == "knn"


def test_without_held_out_images_the_probe_is_logged_all_the_same(tmp_path, arrays):
    byol.pretrain(
        seeded(), arrays, small_config(tmp_path, probe=ONLINE, knn=KnnConfig(hold_out_share=0, times=1))
    )
    assert any("online_train_top1" in line for line in metrics_of(tmp_path))
    assert not any("online_top1" in line for line in metrics_of(tmp_path))


@pytest.mark.parametrize("in_memory", [True, False])
def test_nothing_is_learned_from_the_label_of_an_unreadable_image(tmp_path, in_memory):
    def items(label: int) -> list[tuple[bytes, int]]:
        made = []
        for number in range(20):
            stream = io.BytesIO()
            Image.new("RGB", (20, 20), (number * 10, 90, 0)).save(stream, "PNG")
            made.append((stream.getvalue(), number % 3) if number != 7 else (b"no picture", label))
        return made

    data = DataConfig(in_memory=in_memory, max_bad=0.1)
    config = small_config(tmp_path, probe=ONLINE, data=data, knn=KnnConfig(hold_out_share=0, times=1))
    for label in (0, 2):
        byol.pretrain(seeded(), items(label), replace(config, out=str(tmp_path / str(label))))
    first, second = (tensors_of(tmp_path / label)["probe.classifier.weight"] for label in ("0", "2"))
    assert torch.equal(first, second)


def test_images_without_labels_are_refused_before_anything_is_written(tmp_path, arrays):
    images = np.load(arrays)["images"]
    with pytest.raises(byol.DataError, match=r"probe\.online is on, but the images carry no labels"):
        byol.pretrain(seeded(), images, small_config(tmp_path / "a", probe=ONLINE))
    assert not (tmp_path / "a" / "plan.json").exists()
    with pytest.raises(byol.DataError, match="carry no labels, which the online probe learns from"):
        probed(byol.open_images(images))

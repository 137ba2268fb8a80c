"""The encoder that a run leaves behind half-whitens its features, everywhere by the same numbers."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_runs import Tiny, small_config

import byol
from byol.encoders.load import untrained
from byol.errors import ConfigError, TrainingError
from byol.evaluation.protocols import settled
from byol.models.whitening import HalfWhitening
from byol.train.config import KnnConfig, ModelConfig
from byol.train.monitor import Monitor
from byol.train.setup import Setup, split

SMALL = ModelConfig(width=4, projection_size=8, projection_hidden_size=16)


@pytest.fixture
def convnet(tmp_path):
    """The config of a small run with labels held out."""
    more = {"knn": KnnConfig(hold_out_share=0.25, times=1, k=3), "epochs": 1.0}
    return replace(small_config(tmp_path / "run"), encoder="convnet", model=SMALL, **more)


@pytest.fixture
def images(arrays):
    return byol.open_images(arrays)


def axes(rows) -> np.ndarray:
    """The variances of features along their principal axes, the largest first."""
    return np.linalg.svd(rows - rows.mean(0), compute_uv=False)


def features(encoder, images) -> np.ndarray:
    return byol.embed(encoder, images).x


def test_features_of_a_run_are_those_of_its_network_and_the_layer_fitted_to_them(convnet, images):
    run = byol.pretrain(None, images, convnet)
    without = replace(convnet, out=f"{convnet.out}-plain", model=replace(SMALL, whiten=False))
    plain = byol.pretrain(None, images, without)
    raw, found = features(plain.encoder, images), features(run.encoder, images)
    layer = run.encoder.net.whitening
    np.testing.assert_allclose(found, layer(torch.from_numpy(raw)).numpy(), atol=1e-5)
    before, after = axes(raw), axes(found)
    assert after[0] / after[5] < 0.8 * before[0] / before[5]


def monitored(tmp_path, labelled) -> Monitor:
    """Of an untrained network, 1,500 images to train on and, where there are labels, 100 held out."""
    images = np.random.default_rng(0).integers(0, 256, (1600, 8, 8, 3), dtype=np.uint8)
    given = byol.open_images(images, labels=np.arange(1600) % 2 if labelled else None)
    config = replace(small_config(tmp_path, image_size=8), encoder="convnet", model=SMALL, epochs=1.0)
    config = replace(config, knn=KnnConfig(hold_out_share=100 / 1600, k=3))
    setup = Setup.of(None, given if labelled else given.subset(range(1500)), config)
    plan = setup.new_plan()
    learner = setup.learner(plan)
    encoder, rows = setup.encoder(learner, plan), split(len(setup.images), plan)
    return Monitor(learner, encoder, setup.images, rows, plan, config.knn, lambda name, reason: None)


@pytest.mark.parametrize(("labelled", "embedded"), [(True, 1600), (False, 750)])
def test_only_where_neighbours_vote_does_a_look_embed_more_than_health_needs(tmp_path, labelled, embedded):
    """Of 1,024 images at most every second one; two views of 512 at most, of every third, come on top."""
    monitor = monitored(tmp_path, labelled)
    begin, passed = monitor.look(0, {}), []
    network = monitor.learner.online.encoder
    network.register_forward_pre_hook(lambda net, given: passed.append(len(given[0])))
    assert ("knn_top1" in monitor.look(1, begin)) == labelled
    assert sum(passed) == embedded + 2 * 500


def test_features_that_are_not_finite_are_a_sentence_whichever_image_has_them(tmp_path):
    """The second, and every second tells of health."""
    monitor = monitored(tmp_path, labelled=True)
    begin = monitor.look(0, {})
    rows = torch.arange(500)[:, None]  # a part of them goes through the network at once
    monitor.learner.online.encoder.register_forward_hook(
        lambda net, given, x: x.masked_fill(rows == 1, torch.nan) if len(x) == 500 else x
    )
    with pytest.raises(TrainingError, match="representation of some images is not finite"):
        monitor.look(1, begin)


def test_encoder_file_and_the_run_give_the_same_features(convnet, images):
    run = byol.pretrain(None, images, convnet)
    loaded = byol.load_encoder(run.folder)
    np.testing.assert_array_equal(features(run.encoder, images), features(loaded, images))
    assert loaded.info.options["whiten"] is True


def test_a_finished_run_that_is_called_again_has_the_encoder_of_its_file(convnet, images):
    first = byol.pretrain(None, images, convnet)
    again = byol.pretrain(None, images, convnet)
    np.testing.assert_array_equal(features(first.encoder, images), features(again.encoder, images))


def test_accuracy_of_the_last_look_is_that_of_the_finished_encoder(convnet, arrays, tmp_path):
    kept = np.load(arrays)  # a look rounds the pixels of what it has to scale, so nothing is scaled here
    np.savez(tmp_path / "as_seen.npz", images=kept["images"][:, 2:18, 2:18], labels=kept["labels"])
    images = byol.open_images(tmp_path / "as_seen.npz")
    run = byol.pretrain(None, images, convnet)
    bank, queries = (images.subset(rows) for rows in split(64, run.plan))
    score = byol.evaluate(run.encoder, train=bank, test=queries, protocols="knn", k=3)["knn"]
    assert run.score is not None
    assert (run.score.value, run.score.test_images) == (score.value, 16)


def test_a_run_from_whitened_weights_is_scored_as_its_own_encoder_is(convnet, arrays, tmp_path):
    kept = np.load(arrays)
    np.savez(tmp_path / "as_seen.npz", images=kept["images"][:, 2:18, 2:18], labels=kept["labels"])
    images = byol.open_images(tmp_path / "as_seen.npz")
    source = byol.pretrain(None, images, convnet)
    again = {"encoder": None, "model": replace(SMALL, width=None), "init": str(source.folder)}
    run = byol.pretrain(None, images, replace(convnet, out=str(tmp_path / "b"), **again))
    bank, queries = (images.subset(rows) for rows in split(64, run.plan))
    expected = byol.evaluate(run.encoder, train=bank, test=queries, protocols="knn", k=3)["knn"].value
    assert run.score is not None
    assert run.score.value == expected


def test_whitening_of_the_weights_that_a_run_starts_from_is_left_out_on_request(convnet, images, tmp_path):
    source = byol.pretrain(None, images, convnet)
    model = replace(SMALL, width=None, whiten=False)
    config = replace(convnet, encoder=None, model=model, out=str(tmp_path / "b"), init=str(source.folder))
    run = byol.pretrain(None, images, config)
    assert run.encoder.info.options["whiten"] is False
    assert isinstance(byol.load_encoder(run.folder).net.whitening, torch.nn.Identity)


def test_the_untrained_network_is_whitened_too_when_it_is_compared(convnet, images):
    run = byol.pretrain(None, images, convnet)
    fresh = settled(untrained(run.encoder, seed=0), images)
    assert isinstance(fresh.net.whitening, HalfWhitening)
    assert not torch.equal(fresh.net.whitening.matrix, torch.eye(64))


def test_a_run_from_whitened_weights_starts_with_their_features_and_is_whitened_anew(
    convnet, images, tmp_path
):
    source = byol.pretrain(None, images, convnet)
    config = replace(
        convnet,
        encoder=None,
        model=replace(SMALL, width=None),
        out=str(tmp_path / "b"),
        init=str(source.folder),
    )
    loop = byol.prepare_loop(None, images, config)
    views = torch.rand(4, 3, 24, 24)
    started = loop.learner.net.eval()(views)
    torch.testing.assert_close(started, source.encoder.net(views))
    run = byol.pretrain(None, images, config)
    plain = copy.deepcopy(run.encoder)
    plain.net.whitening = torch.nn.Identity()
    # The run keeps its images rounded to 8 bits.
    trained_on = images.subset(split(64, run.plan)[0])
    expected = HalfWhitening.of(torch.from_numpy(features(plain, trained_on)))
    torch.testing.assert_close(run.encoder.net.whitening.matrix, expected.matrix, rtol=0, atol=0.01)


def test_networks_of_the_users_own_and_other_layers_are_left_as_they_are(convnet, images, tmp_path):
    own = byol.pretrain(Tiny(), images, small_config(tmp_path / "own"))
    inner = byol.pretrain(None, images, replace(convnet, hidden_layer="layers", out=str(tmp_path / "inner")))
    assert (own.plan.whiten, inner.plan.whiten) == (False, False)
    asked = replace(small_config(tmp_path / "asked"), model=ModelConfig(whiten=True))
    with pytest.raises(ConfigError, match=r"model\.whiten"):
        byol.pretrain(Tiny(), images, asked)
    wide = replace(asked, encoder="convnet", model=ModelConfig(whiten=True, width=129))
    with pytest.raises(ConfigError, match=r"model\.whiten.*width 129"):
        byol.pretrain(None, images, wide)
    with pytest.raises(ConfigError, match=r"model\.whiten.*resnet18"):
        byol.pretrain(None, images, replace(asked, encoder="resnet18"))

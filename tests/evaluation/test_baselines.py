from functools import partial

import numpy as np
import pytest
import torch
from labelled_images import images
from torch import nn

from byol.encoders.load import untrained
from byol.errors import ConfigError
from byol.evaluation.protocols import (
    BASELINES,
    EvaluationConfig,
    evaluate,
    judge,
    pixels,
    prepare,
    protocols_named,
)
from byol.features.embed import embed

ARRAYS = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)


def test_pixels_are_the_normalised_pixels_that_the_encoder_is_fed(encoder_of):
    encoder = encoder_of("convnet")
    found = embed(pixels(encoder), ARRAYS).x
    expected = (ARRAYS / 255 - encoder.info.mean) / encoder.info.std
    np.testing.assert_allclose(found, expected.transpose(0, 3, 1, 2).reshape(6, -1), rtol=1e-4, atol=1e-5)


def test_large_images_are_shrunk_before_their_pixels_are_features(encoder_of):
    encoder = pixels(encoder_of("convnet", size=(64, 48)))
    assert embed(encoder, np.zeros((2, 64, 48, 3), dtype=np.uint8)).x.shape == (2, 3 * 32 * 32)
    assert encoder.info.features == 3 * 32 * 32


def test_untrained_is_the_same_network_with_weights_that_follow_from_the_seed(encoder_of):
    encoder = encoder_of("convnet", width=4)
    encoder.net.load_state_dict({name: value + 1 for name, value in encoder.net.state_dict().items()})
    state = torch.get_rng_state()
    first, again, other = (untrained(encoder, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert first.info == encoder.info
    weights = [next(one.net.parameters()) for one in (first, again, other, encoder)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert not torch.equal(weights[0], weights[3])
    assert embed(first, ARRAYS).x.shape == embed(encoder, ARRAYS).x.shape


def test_untrained_code_of_ones_own_is_built_only_when_it_is_named(encoder_of, tmp_path, monkeypatch):
    (tmp_path / "own_baseline.py").write_text(
        "from torch import nn\ndef build():\n"
        "    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    encoder = encoder_of(nn.Sequential(nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    with pytest.raises(ConfigError, match="code of your own"):
        untrained(encoder)
    assert embed(untrained(encoder, net="own_baseline:build"), ARRAYS).x.shape == (6, 5)


def test_a_baseline_is_scored_by_what_it_can_be_scored_by():
    every = protocols_named(("knn", "linear-sgd", "semi-1", "finetune", "linear"), EvaluationConfig())
    taken = {name: [one.name for one in every if baseline.takes(one)] for name, baseline in BASELINES.items()}
    assert taken == {
        "pixels": ["knn", "linear"],
        "untrained": ["knn", "linear-sgd", "linear"],
        "supervised": ["semi-1", "finetune"],
    }


def test_baselines_can_be_scored_as_any_encoder(encoder_of):
    """Pictures that are dark or bright: the pixels tell, and so do random features."""
    y = np.arange(60) % 2
    images = (
        np.random.default_rng(0).integers(0, 100, (60, 16, 16, 3)) + 100 * y[:, None, None, None]
    ).astype(np.uint8)
    pairs = list(zip(images, y.tolist(), strict=True))
    encoder = encoder_of("convnet")
    for baseline in BASELINES.values():
        for score in evaluate(baseline.make(encoder), train=pairs[:40], test=pairs[40:]).values():
            assert score.top1 > 0.9


def test_training_from_scratch_starts_from_other_weights_with_each_seed(encoder_of):
    encoder = encoder_of("convnet", width=4)
    again = partial(BASELINES["supervised"].make, encoder)
    assert [again(seed=seed).checksum() for seed in (0, 1)] == [
        untrained(encoder, seed=seed).checksum() for seed in (0, 1)
    ]
    assert again(seed=0).checksum() != again(seed=1).checksum()
    assert [name for name, baseline in BASELINES.items() if baseline.anew] == ["supervised"]
    made = []

    def anew(seed: int):
        made.append(seed)
        return again(seed=seed)

    config = EvaluationConfig(base_lrs=0.1, epochs=1.0)
    sets = images(16), images(16, seed=1), protocols_named("finetune", config), config
    [(_, score)] = judge(prepare(encoder, *sets, seed=3, seeds=2, anew=anew))
    assert made == [3, 4]
    alone = [score for seed in (3, 4) for _, score in judge(prepare(again(seed=seed), *sets, seed=seed))]
    assert score.value == pytest.approx(np.mean([one.value for one in alone]))

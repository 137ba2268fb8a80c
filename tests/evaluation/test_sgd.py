"""One loop trains a classifier on an encoder, frozen or not: held against plain torch on the same crops."""

import copy
import io
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from labelled_images import enlarged, images, labelled, net, pixels, plain_torch, same, state
from PIL import Image
from torch import nn

from byol.data.images import Images, open_images
from byol.errors import ConfigError
from byol.evaluation.sgd import (
    ClassifierConfig,
    Trial,
    batch_size_for,
    capped,
    fit,
    new_classifier,
    objective,
)
from byol.evaluation.train_batches import TrainImages

CPU = torch.device("cpu")
PLAIN = ClassifierConfig(base_lrs=(0.4,), epochs=(3.0,), precision="fp32")
STEPS = 3 * 100 // 16  # of 100 images, in batches of 16


@pytest.fixture
def encoder(encoder_of):
    return encoder_of(net())


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "fine-tuned"])
@pytest.mark.parametrize("decay", [0.0, 1e-3])
def test_one_rate_is_torch_optim_sgd_with_torchs_own_cosine(encoder, frozen, decay):
    lr = 0.4 * 16 / 256
    part = labelled(100)
    expected, classifier = copy.deepcopy(encoder), new_classifier(24, 4, seed=5)
    plain_torch(
        expected, classifier, part, lr=lr, decay=decay / lr, batch_size=16, steps=STEPS, frozen=frozen, seed=5
    )
    [found] = fit(encoder, part, [Trial(3.0, 0.4, decay)], PLAIN, frozen=frozen, seed=5)
    for ours, theirs in zip(
        (*found.parameters(), *encoder.parameters()),
        (*classifier.parameters(), *expected.parameters()),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(encoder.net.layers[1].running_mean, expected.net.layers[1].running_mean)
    assert not torch.equal(found.weight, new_classifier(24, 4, seed=5).weight)


def test_decay_is_divided_by_the_rate_and_spares_biases_and_batchnorm(encoder_of):
    """So the share of a weight that a step at the peak takes is the decay itself, whatever the rate."""
    from byol.evaluation.sgd import sgd

    encoder = encoder_of(net())
    for base_lr in (0.05, 0.4):
        optimizer = sgd([new_classifier(24, 4, 0)], [Trial(1.0, base_lr, 1e-3)], 64, encoder.network)
        for group in optimizer.param_groups:
            peak = group["base_lr"] * 64 / 256
            expected = 1e-3 if all(p.ndim > 1 for p in group["params"]) else 0.0
            assert peak * group["weight_decay"] == pytest.approx(expected)


def test_a_frozen_encoder_stays_bit_for_bit(encoder):
    before, modes = state(encoder), [module.training for module in encoder.modules()]
    fit(encoder, labelled(100), [Trial(3.0, 0.4, 0.0)], PLAIN, frozen=True, seed=0)
    assert same(state(encoder), before)
    assert [module.training for module in encoder.modules()] == modes
    assert all(p.grad is None for p in encoder.parameters())


def test_fine_tuning_changes_weights_and_statistics(encoder):
    before = state(encoder)
    fit(encoder, labelled(100), [Trial(3.0, 0.4, 0.0)], PLAIN, frozen=False, seed=0)
    assert not any(torch.equal(value, before[name]) for name, value in state(encoder).items())
    assert not any(module.training for module in encoder.modules())


def test_rates_side_by_side_learn_what_each_learns_alone_bit_for_bit(encoder):
    part = labelled(100)
    trials = [
        Trial(2.0, lr, decay) for lr in (0.05, 0.3, 1e25, 1.0) for decay in (0.0, 1e-3)
    ]  # one goes astray
    together = fit(encoder, part, trials, PLAIN, frozen=True, seed=1)
    for trial, classifier in zip(trials, together, strict=True):
        [alone] = fit(encoder, part, [trial], PLAIN, frozen=True, seed=1)
        assert torch.equal(classifier.weight, alone.weight)
        assert torch.equal(classifier.bias, alone.bias)
    sane = [classifier for trial, classifier in zip(trials, together, strict=True) if trial.base_lr < 1e25]
    assert not any(torch.equal(first.weight, second.weight) for first, second in combinations(sane, 2))


@pytest.mark.parametrize("frozen", [True, False])
def test_everything_follows_from_the_seed_and_leaves_the_random_state(encoder_of, frozen):
    def trained(seed: int, other_random_state: int) -> torch.Tensor:
        encoder = encoder_of(net(dropout=0.3))
        torch.manual_seed(other_random_state)
        before = torch.get_rng_state()
        [classifier] = fit(encoder, labelled(60), [Trial(2.0, 0.4, 0.0)], PLAIN, frozen=frozen, seed=seed)
        assert torch.equal(torch.get_rng_state(), before)
        return torch.cat(
            [
                value.flatten().double()
                for value in (*classifier.state_dict().values(), *encoder.state_dict().values())
            ]
        )

    first = trained(0, 1)
    assert torch.equal(first, trained(0, 2))
    assert not torch.equal(first, trained(1, 1))


def test_training_works_where_gradients_are_switched_off(encoder):
    with torch.no_grad():
        [classifier] = fit(encoder, labelled(60), [Trial(1.0, 0.4, 0.0)], PLAIN, frozen=True, seed=0)
    assert not torch.equal(classifier.weight, new_classifier(24, 4, 0).weight)


# The objective


def test_objective_is_the_papers_table_7():
    generator = torch.Generator().manual_seed(0)
    logits, y = 30 * torch.randn(8, 5, generator=generator), torch.arange(8) % 5
    config = ClassifierConfig((0.1,), (1.0,), logit_cap=20.0, logit_penalty=0.01)
    x = 20 * np.tanh(logits.double().numpy() / 20)
    entropy = np.log(np.exp(x).sum(axis=1)) - x[np.arange(8), y.numpy()]
    assert objective(logits, y, config).item() == pytest.approx(
        entropy.mean() + 0.01 * (x**2).mean(), rel=1e-5
    )
    assert capped(logits, 20.0).abs().max() < 20
    assert torch.equal(capped(logits, None), logits)
    assert objective(logits, y, PLAIN).item() == pytest.approx(
        nn.functional.cross_entropy(logits, y).item(), rel=1e-5
    )


def test_regularised_training_is_plain_torch_with_the_regularised_loss(encoder):
    def loss(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        squashed = 2 * torch.tanh(logits / 2)
        return nn.functional.cross_entropy(squashed, y) + 0.1 * squashed.square().mean()

    part, classifier = labelled(100), new_classifier(24, 4, seed=0)
    plain_torch(
        copy.deepcopy(encoder),
        classifier,
        part,
        lr=0.025,
        decay=0,
        batch_size=16,
        steps=STEPS,
        frozen=True,
        seed=0,
        loss=loss,
    )
    config = ClassifierConfig((0.4,), (3.0,), logit_cap=2.0, logit_penalty=0.1, precision="fp32")
    [found] = fit(encoder, part, [Trial(3.0, 0.4, 0.0)], config, frozen=True, seed=0)
    torch.testing.assert_close(found.weight, classifier.weight, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("count", "momentum"), [(100, 0.1), (1600, 0.1), (6400, 0.05)])
def test_batchnorm_keeps_the_papers_share_of_its_statistics(encoder, count, momentum):
    """max(1 - 10 / steps per epoch, 0.9) of them in each step: of 6,400 images 200 steps of 32."""
    config = replace(PLAIN, batch_size=32)
    steps_per_epoch = count / batch_size_for(count, 32)
    assert 1 - momentum == pytest.approx(max(1 - 10 / steps_per_epoch, 0.9))
    fit(encoder, labelled(count), [Trial(2 * 32 / count, 0.4, 0.0)], config, frozen=False, seed=0)
    assert encoder.net.layers[1].momentum == pytest.approx(momentum)


def test_classifier_starts_as_the_official_one():
    classifier = new_classifier(1000, 50, seed=3)
    assert torch.equal(classifier.bias, torch.zeros(50))
    assert classifier.weight.abs().max() <= 2 / 1000**0.5
    assert classifier.weight.std().item() == pytest.approx(0.88 / 1000**0.5, rel=0.01)


@pytest.mark.parametrize(
    ("count", "most", "size"), [(10, 256, 16), (500, 256, 62), (5000, 256, 256), (50_000, 1024, 1024)]
)
def test_small_sets_get_small_batches(count, most, size):
    assert batch_size_for(count, most) == size


@pytest.mark.parametrize(
    "changes",
    [
        {"base_lrs": ()}, {"base_lrs": (0.1, 0.0)}, {"base_lrs": (float("nan"),)},
        {"epochs": (float("inf"),)},
        {"weight_decays": (-1e-4,)}, {"batch_size": 1}, {"validation_share": -0.1},
        {"validation_share": 1.0}, {"validation_share": float("nan")}, {"crop_area": (0.5, 0.1)},
        {"logit_cap": 0.0}, {"logit_penalty": -0.1},
    ],
)  # fmt: skip
def test_settings_that_cannot_work_are_refused_by_name(changes):
    with pytest.raises(ConfigError, match=next(iter(changes))):
        ClassifierConfig(**({"base_lrs": (0.1,), "epochs": (1.0,)} | changes))


# Images as they come


def encoded(count: int, broken: int, label: int, streamed: bool) -> Images:
    """Pictures as (bytes, label), one of which cannot be read and carries the given label."""
    x, y = pixels(count)
    items = []
    for number, picture in enumerate(enlarged(x) if streamed else x):
        Image.fromarray(picture).save(stream := io.BytesIO(), "PNG")
        items.append((stream.getvalue(), int(y[number])) if number != broken else (b"no picture", label))
    return open_images(items)


@pytest.mark.parametrize("streamed", [False, True])
def test_nothing_is_learned_from_the_label_of_an_unreadable_image(encoder, caplog, streamed):
    weights = []
    for label in (1, 3):
        part = TrainImages.open(encoded(48, 5, label, streamed), CPU)
        assert (part.pixels is None) == streamed
        [classifier] = fit(encoder, part, [Trial(2.0, 0.4, 0.0)], PLAIN, frozen=True, seed=0)
        weights.append(classifier.weight)
    assert torch.equal(*weights)
    left_out = [record.message.split(" (")[0] for record in caplog.records]
    assert left_out == ["An unreadable image is left out: 5"] * 2


def test_small_images_are_kept_in_memory_and_larger_or_mixed_ones_are_not(tmp_path):
    assert labelled(20).pixels is not None
    large = open_images(np.zeros((4, 130, 130, 3), np.uint8), labels=[0, 1, 0, 1])
    assert TrainImages.open(large, CPU).pixels is None
    mixed = open_images([(np.zeros((16, 16 + n, 3), np.uint8), n % 2) for n in range(4)])
    assert TrainImages.open(mixed, CPU).pixels is None


def test_a_subset_learns_what_its_images_alone_would(encoder):
    rows = np.array([3, 5, 8, 20, 21, 22, 40, 43])
    whole, trial = images(60), [Trial(4.0, 0.4, 0.0)]
    [first] = fit(encoder, TrainImages.open(whole, CPU).subset(rows), trial, PLAIN, frozen=True, seed=0)
    [second] = fit(encoder, TrainImages.open(whole.subset(rows), CPU), trial, PLAIN, frozen=True, seed=0)
    assert torch.equal(first.weight, second.weight)


@pytest.mark.slow
def test_worker_processes_change_nothing(encoder):
    x, y = pixels(60)
    weights = []
    for workers in (0, 2):
        part = TrainImages.open(open_images(enlarged(x), labels=y), CPU, workers=workers)
        weights.append(fit(encoder, part, [Trial(2.0, 0.4, 0.0)], PLAIN, frozen=True, seed=0)[0].weight)
    assert torch.equal(*weights)

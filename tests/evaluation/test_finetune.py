"""Protocols that train on labels: what they learn from, what they choose on, and what they must never see."""

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from labelled_images import Net, enlarged, images, net, pixels, same, state
from PIL import Image
from sklearn.metrics import accuracy_score

from byol.data.images import Images, open_images
from byol.encoders.load import untrained
from byol.errors import ConfigError, DataError, TrainingError
from byol.evaluation.finetune import FINETUNE, LINEAR_SGD, SEMI, train_classifier
from byol.evaluation.inputs import Predictions
from byol.evaluation.protocols import BASELINES
from byol.evaluation.sgd import ClassifierConfig, Trial, fit, logits_of
from byol.evaluation.subsets import Amount, few, validation_split
from byol.evaluation.train_batches import TrainImages
from byol.features.embed import embed


def ranked(classifier, x: np.ndarray, config: ClassifierConfig) -> np.ndarray:
    """The classes by falling logit."""
    return logits_of(classifier, torch.from_numpy(x), config).numpy().argsort(axis=1)[:, ::-1]


SHORT = ClassifierConfig(base_lrs=(0.01, 0.4, 3.0), epochs=(2.0,), validation_share=0.25, precision="fp32")
TEN = Amount(10, per_class=True)  # of 20
linear_sgd = partial(train_classifier, config=SHORT, frozen=True)
semi = partial(train_classifier, config=SHORT, frozen=False, amount=TEN)
finetune = partial(train_classifier, config=SHORT, frozen=False)


@pytest.fixture
def encoder(encoder_of):
    return encoder_of("convnet", width=4)


@pytest.fixture(params=[linear_sgd, semi, finetune], ids=["linear-sgd", "semi", "finetune"])
def protocol(request) -> Callable[..., Predictions]:
    return request.param


def top1(found: Predictions) -> float:
    return accuracy_score(found.labels, found.classes[:, 0])


def test_every_protocol_learns_to_tell_hues_apart(encoder, protocol):
    found = protocol(encoder, images(80), images(80, seed=1), config=replace(SHORT, epochs=(12.0,)))
    assert found.classes.shape == (80, 4)
    assert found.classes.dtype == np.int64
    assert top1(found) > 0.6  # 0.25 by chance
    assert len(found.settings["tried"]) == 3


def test_nothing_is_learned_or_chosen_on_test_images(encoder, protocol):
    """With garbage for the test labels, without any, and with other test images the settings stay."""
    train, (x, y) = images(80), pixels(40, seed=1)
    first = protocol(encoder, train, open_images(x, labels=y))
    garbage = protocol(encoder, train, open_images(x, labels=np.random.default_rng(0).integers(0, 4, 40)))
    unlabelled = protocol(encoder, train, open_images(x))
    others = protocol(encoder, train, open_images(255 - x[:7], labels=y[:7]))
    assert first.settings == garbage.settings == unlabelled.settings == others.settings
    assert np.array_equal(first.classes, garbage.classes)
    assert np.array_equal(first.classes, unlabelled.classes)
    assert unlabelled.labels is None


def test_the_callers_encoder_is_untouched(encoder, protocol):
    before = state(encoder)
    protocol(encoder, images(80), images(20, seed=1))
    assert same(state(encoder), before)
    assert not any(module.training for module in encoder.modules())
    assert all(p.grad is None for p in encoder.parameters())


def test_everything_follows_from_the_seed_and_leaves_the_random_state(encoder, protocol):
    train, test = images(80), images(20, seed=1)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first, second, other = (protocol(encoder, train, test, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert first.settings == second.settings
    assert np.array_equal(first.classes, second.classes)
    assert not np.array_equal(first.classes, other.classes)


def accuracy_of(encoder, classifier, part: Images, config: ClassifierConfig) -> float:
    features = embed(encoder, part)
    return accuracy_score(features.y, ranked(classifier, features.x, config)[:, 0])


def test_linear_sgd_answers_with_the_classifier_that_is_best_on_held_out_training_images(encoder):
    train, test = images(80), images(40, seed=1)
    found = linear_sgd(encoder, train, test, seed=2)
    learn, choose = validation_split(train.labels, 0.25, 2)
    part, trials = (
        TrainImages.open(train.subset(learn), torch.device("cpu")),
        [Trial(2.0, lr, 0.0) for lr in SHORT.base_lrs],
    )
    classifiers = [fit(encoder, part, [trial], SHORT, frozen=True, seed=2)[0] for trial in trials]
    expected = [accuracy_of(encoder, classifier, train.subset(choose), SHORT) for classifier in classifiers]
    assert [tried["top1"] for tried in found.settings["tried"]] == pytest.approx(expected)
    assert len(set(expected)) > 1
    best = trials.index(Trial(2.0, found.settings["base_lr"], 0.0))
    assert expected[best] == max(expected)
    assert np.array_equal(found.classes, ranked(classifiers[best], embed(encoder, test).x, SHORT))
    assert found.settings["validation_images"] == len(choose) == 20


def test_fine_tuning_chooses_on_held_out_labels_and_then_learns_from_all_of_them(encoder):
    train, test = images(80), images(40, seed=1)
    found = finetune(encoder, train, test, seed=2)
    learn, choose = validation_split(train.labels, 0.25, 2)
    expected = []
    for lr in SHORT.base_lrs:
        tuned = copy.deepcopy(encoder)
        part = TrainImages.open(train.subset(learn), torch.device("cpu"))
        [classifier] = fit(tuned, part, [Trial(2.0, lr, 0.0)], SHORT, frozen=False, seed=2)
        expected.append(accuracy_of(tuned, classifier, train.subset(choose), SHORT))
    assert [tried["top1"] for tried in found.settings["tried"]] == pytest.approx(expected)
    assert expected[SHORT.base_lrs.index(found.settings["base_lr"])] == max(expected)

    again = Trial(2.0, found.settings["base_lr"], 0.0)
    [classifier] = fit(
        encoder, TrainImages.open(train, torch.device("cpu")), [again], SHORT, frozen=False, seed=2
    )
    assert np.array_equal(found.classes, ranked(classifier, embed(encoder, test).x, SHORT))
    assert found.train_images == 80


def test_semi_sees_the_few_images_and_nothing_else(encoder):
    """The answers are those of fine-tuning on a set that holds the few images alone."""
    train, test = images(200), images(20, seed=1)
    rows = few(train.labels, TEN, seed=5)
    found = semi(encoder, train, test, seed=5)
    alone = finetune(encoder, train.subset(rows), test, seed=5)
    assert found.settings == alone.settings
    assert np.array_equal(found.classes, alone.classes)
    assert found.train_images == len(rows) == 40


def test_one_image_per_class_is_learned_from_with_the_middle_settings(encoder, caplog):
    found = semi(encoder, images(40), images(20, seed=1), amount=Amount(1, per_class=True))
    assert (found.settings["base_lr"], found.settings["tried"], found.settings["validation_images"]) == (
        0.4,
        None,
        None,
    )
    assert found.train_images == 4
    assert "no images to choose settings on, so the middle ones of 3 are taken" in caplog.text


def test_one_setting_needs_nothing_to_choose_on(encoder, protocol, caplog):
    found = protocol(encoder, images(80), images(20, seed=1), config=replace(SHORT, base_lrs=(0.2,)))
    assert (found.settings["base_lr"], found.settings["tried"], found.settings["validation_images"]) == (
        0.2,
        None,
        None,
    )
    assert caplog.text == ""


def test_all_combinations_are_tried_and_the_loss_decides_between_equals(encoder):
    config = replace(SHORT, base_lrs=(0.4, 0.1), epochs=(2.0, 1.0), weight_decays=(0.0, 1e-4))
    found = linear_sgd(encoder, images(160), images(20, seed=1), config=config)
    tried = found.settings["tried"]
    assert {(t["epochs"], t["base_lr"], t["weight_decay"]) for t in tried} == {
        (epochs, lr, decay) for epochs in (1.0, 2.0) for lr in (0.1, 0.4) for decay in (0.0, 1e-4)
    }
    assert len(tried) == 8


def test_a_rate_that_is_named_twice_is_tried_once(encoder, protocol):
    found = protocol(
        encoder, images(80), images(20, seed=1), config=replace(SHORT, base_lrs=(0.4, 0.01, 0.4))
    )
    assert [tried["base_lr"] for tried in found.settings["tried"]] == [0.01, 0.4]


def test_supervised_learns_from_fresh_weights_whatever_the_encoder_has_learned(encoder_of):
    first, other = (encoder_of("convnet", width=4) for _ in range(2))
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(1.5)
    starts = [BASELINES["supervised"].make(encoder, seed=1) for encoder in (first, other)]
    found = [semi(start, images(80), images(20, seed=1), seed=1) for start in starts]
    assert np.array_equal(found[0].classes, found[1].classes)


def test_supervised_on_a_network_of_your_own_wants_a_fresh_one(encoder_of):
    encoder = encoder_of(net())
    with pytest.raises(ConfigError, match="only you can build a fresh one"):
        BASELINES["supervised"].make(encoder)
    torch.manual_seed(1)
    found = finetune(untrained(encoder, net=Net()), images(40), images(20, seed=1))
    assert found.classes.shape == (20, 4)


def test_a_frozen_encoders_features_stand_for_the_test_images(encoder):
    train, test = images(80), images(20, seed=1)
    found, by_features = linear_sgd(encoder, train, test), linear_sgd(encoder, train, embed(encoder, test))
    assert np.array_equal(found.classes, by_features.classes)
    assert np.array_equal(found.labels, by_features.labels)


def test_untrained_is_a_function_of_the_seed_and_differs_from_the_trained(encoder):
    first, second, other = (untrained(encoder, seed=seed) for seed in (0, 0, 1))
    assert same(state(first), state(second))
    assert not same(state(first), state(other))
    assert not same(state(first), state(encoder))
    assert first.info == encoder.info


def test_defaults_are_the_papers_where_it_names_them():
    assert sorted(LINEAR_SGD.base_lrs) == [0.05, 0.1, 0.2, 0.3, 0.4]
    assert (LINEAR_SGD.epochs, LINEAR_SGD.batch_size, LINEAR_SGD.weight_decays) == ((80.0,), 1024, (0.0,))
    assert SEMI.epochs == (50.0,)
    assert set(SEMI.weight_decays) == set(FINETUNE.weight_decays) == {0.0}


# Bad input


def test_images_without_labels_are_refused_before_any_work(encoder, protocol):
    with pytest.raises(DataError, match=r"32 images in the array .* carry no labels"):
        protocol(encoder, open_images(pixels(32)[0]), images(20))


def test_one_class_is_refused(encoder, protocol):
    with pytest.raises(DataError, match="Only one class occurs among"):
        protocol(encoder, images(32, classes=1), images(20))


def test_fewer_images_per_class_than_asked_for_are_refused(encoder):
    with pytest.raises(DataError, match="Class 0 has 8 labelled images, of 10 per class that were requested"):
        semi(encoder, images(32), images(20))


def test_images_of_other_channels_are_refused(encoder, protocol):
    satellite = open_images(np.zeros((40, 8, 8, 5), dtype=np.uint8), labels=np.arange(40) % 4)
    for train, test in ((satellite, images(20)), (images(40), satellite)):
        with pytest.raises(DataError, match="5 channels"):
            protocol(encoder, train, test)


def test_an_encoder_with_damaged_weights_is_refused(encoder):
    with torch.no_grad():
        next(encoder.parameters())[0] = float("nan")
    for run in (linear_sgd, finetune):
        with pytest.raises(DataError, match="weights hold NaN or infinity"):
            run(encoder, images(40), images(20))


def test_rates_that_all_diverge_are_told_and_one_that_does_not_is_taken(encoder):
    wild = replace(SHORT, base_lrs=(1e20, 1e25))
    with pytest.raises(TrainingError, match=r"diverged with every learning rate \(base_lrs 1e\+20, 1e\+25\)"):
        finetune(encoder, images(80), images(20), config=wild)
    with pytest.raises(TrainingError, match="diverged"):  # with nothing to choose on
        finetune(encoder, images(4), images(20), config=wild)
    found = finetune(encoder, images(80), images(20), config=replace(SHORT, base_lrs=(0.1, 1e25)))
    assert found.settings["base_lr"] == 0.1
    assert [tried["top1"] for tried in found.settings["tried"]][1] is None


def test_unreadable_test_images_are_left_out_of_answers_and_labels_alike(encoder, caplog):
    x, y = pixels(20, seed=1)
    items = [(x[n], int(y[n])) if n != 4 else (b"no picture", 3) for n in range(20)]
    found = linear_sgd(encoder, images(80), open_images(items))
    assert found.classes.shape == (19, 4)
    assert found.labels.tolist() == np.delete(y, 4).tolist()
    assert "Left out, because unreadable: 1 of 20 images in the list (4 classes): 4" in caplog.text


def without(bad, streamed: bool) -> Images:
    """40 images, some of which cannot be read."""
    x, y = pixels(40)
    x = enlarged(x) if streamed else x
    return open_images([(x[n] if n not in bad else b"no picture", int(y[n])) for n in range(40)])


@pytest.mark.parametrize("streamed", [False, True])
def test_unreadable_validation_images_are_not_chosen_on_even_if_all_are(encoder, caplog, streamed):
    """Which of 40 images these are is known from the seed; here some of them, or all, cannot be read."""
    out = validation_split(pixels(40)[1], 0.25, seed=0)[1].tolist()
    found = linear_sgd(encoder, without(out[:3], streamed), images(20, seed=1))
    assert found.settings["validation_images"] == len(out) - 3
    assert caplog.text.count("An unreadable image is left out") == 3
    found = linear_sgd(encoder, without(out, streamed), images(20, seed=1))
    assert (found.settings["base_lr"], found.settings["validation_images"]) == (0.4, None)
    assert "no images to choose settings on" in caplog.text


def test_a_folder_whose_sizes_turn_out_to_differ_is_streamed(encoder, tmp_path):
    """Of many files 64 headers are looked at, and this one is not among them."""
    x, y = pixels(200)
    for index, (image, label) in enumerate(zip(x, y, strict=True)):
        (tmp_path / str(label)).mkdir(exist_ok=True)
        picture = Image.fromarray(image)
        (picture.resize((20, 20)) if index == 4 else picture).save(tmp_path / str(label) / f"{index:03}.png")
    found = open_images(tmp_path)
    assert found.uniform_size() == (16, 16)
    assert TrainImages.open(found, torch.device("cpu")).pixels is None
    assert linear_sgd(encoder, found, images(20, seed=1)).train_images == 200


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("run", [linear_sgd, finetune], ids=["linear-sgd", "finetune"])
def test_only_images_that_could_be_read_count_as_learned_from(encoder, streamed, run):
    assert run(encoder, without({7, 20, 33}, streamed), images(20, seed=1)).train_images == 37
    with pytest.raises(DataError, match="those of one class alone can be read"):
        run(encoder, without(set(np.flatnonzero(pixels(40)[1] > 0)), streamed), images(20, seed=1))

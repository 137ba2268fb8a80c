import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, balanced_accuracy_score
from sklearn.preprocessing import StandardScaler

from byol.errors import DataError
from byol.evaluation import linear
from byol.evaluation.subsets import validation_split


def clusters(
    count: int, classes: int, seed: int = 0, width: int = 10, spread: float = 1.5
) -> tuple[torch.Tensor, torch.Tensor]:
    """Overlapping clouds of features (N, D), each with a mean and a scale of its own, and their classes."""
    shared = np.random.default_rng(99)
    centres, offset, scale = (
        shared.normal(size=(classes, width)),
        shared.normal(size=width),
        shared.uniform(0.1, 10, width),
    )
    generator = np.random.default_rng(seed)
    y = generator.integers(0, classes, count)
    x = (centres[y] + spread * generator.normal(size=(count, width)) + offset) * scale
    return torch.from_numpy(x).float(), torch.from_numpy(y)


def scikit_learn(x: torch.Tensor, y: torch.Tensor, l2: float) -> tuple[StandardScaler, LogisticRegression]:
    """Minimises C * summed loss + |weight|^2 / 2, our objective with C = 1 / (l2 N).

    With two classes it has one vector of weights where the softmax has two, each half of it: |weight|^2 is
    halved too.
    """
    scaler = StandardScaler().fit(x.double().numpy())
    c = (2 if len(y.unique()) == 2 else 1) / (l2 * len(x))
    return scaler, LogisticRegression(C=c, tol=1e-8, max_iter=5000).fit(
        scaler.transform(x.double().numpy()), y.numpy()
    )


def classes(classifier: linear.LogisticRegression, x: torch.Tensor) -> torch.Tensor:
    """The likeliest class of each row."""
    return classifier.predict(x)[:, 0]


def accuracy(predicted: torch.Tensor, y: torch.Tensor) -> float:
    return (predicted == y).double().mean().item()


@pytest.mark.parametrize("count", [2, 3, 10])
@pytest.mark.parametrize("l2", [1e-4, 1e-2, 1.0])
def test_classifier_is_that_of_scikit_learn_on_standardised_features(count, l2):
    x, y = clusters(1000, count)
    test_x, test_y = clusters(5000, count, seed=1)
    scaler, expected = scikit_learn(x, y, l2)
    found = linear.fit(x, y, l2=[l2])

    theirs = torch.from_numpy(expected.predict(scaler.transform(test_x.double().numpy())))
    assert accuracy(classes(found, test_x), test_y) == pytest.approx(accuracy(theirs, test_y), abs=0.001)
    assert accuracy(classes(found, test_x), theirs) > 0.998
    weight, bias = found.classifier.weight.numpy(), found.classifier.bias.numpy()
    if count == 2:
        weight, bias = weight[1:] - weight[:1], bias[1:] - bias[:1]
    else:  # a constant added to every bias changes nothing
        bias, expected.intercept_ = bias - bias.mean(), expected.intercept_ - expected.intercept_.mean()
    np.testing.assert_allclose(weight, expected.coef_, rtol=0, atol=5e-3)
    np.testing.assert_allclose(bias, expected.intercept_, rtol=0, atol=5e-3)
    np.testing.assert_allclose(found.classifier.mean, scaler.mean_, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.classifier.std, scaler.scale_, rtol=1e-4)


def tagged(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Features that overlap, and which of four classes each is of, int64 (N, 4), of very different sizes."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(count, 8))
    chance = x @ np.random.default_rng(99).normal(size=(8, 4)) + generator.normal(size=(count, 4))
    return torch.from_numpy(x).float(), torch.from_numpy((chance > [0, 1, 3, 5]).astype(np.int64))


@pytest.mark.parametrize("l2", [1e-4, 1e-2, 1.0])
def test_multi_label_is_one_yes_or_no_for_each_class_as_in_scikit_learn(l2):
    x, y = tagged(600)
    test_x, _ = tagged(500, seed=1)
    found = linear.fit(x, y, l2=[l2])
    scaler = StandardScaler().fit(x.double().numpy())
    standard, test_standard = (scaler.transform(part.double().numpy()) for part in (x, test_x))
    assert 0 < y[:, 3].sum() < 30
    for c in range(4):
        model = LogisticRegression(C=1 / (l2 * len(x)), tol=1e-8, max_iter=5000).fit(
            standard, y[:, c].numpy()
        )
        np.testing.assert_allclose(found.classifier.weight[c], model.coef_[0], rtol=0, atol=5e-3)
        logits = model.decision_function(test_standard)
        np.testing.assert_allclose(found.predict(test_x)[:, c], logits, rtol=0, atol=2e-2)


@pytest.mark.parametrize("l2", [1e-4, 1e-1])
def test_fewer_images_than_features_and_features_that_repeat_are_solved_as_by_scikit_learn(l2):
    """Copies and sums of features: the covariance has no inverse, and the penalty decides on the weights."""
    x, y = clusters(80, 3, width=20, spread=3.0)
    x = torch.cat([x, x[:, :5], x[:, :10] + x[:, 10:], 2 * x + 1, torch.zeros(80, 40)], dim=1)
    assert x.shape == (80, 95)
    test_x, test_y = clusters(2000, 3, seed=1, width=20, spread=3.0)
    test_x = torch.cat(
        [test_x, test_x[:, :5], test_x[:, :10] + test_x[:, 10:], 2 * test_x + 1, torch.zeros(2000, 40)], dim=1
    )
    scaler, expected = scikit_learn(x, y, l2)
    found = linear.fit(x, y, l2=[l2])
    theirs = torch.from_numpy(expected.predict(scaler.transform(test_x.double().numpy())))
    assert accuracy(classes(found, test_x), theirs) > 0.995
    np.testing.assert_allclose(found.classifier.weight, expected.coef_, rtol=0, atol=5e-3)
    assert accuracy(classes(found, test_x), test_y) == pytest.approx(accuracy(theirs, test_y), abs=0.004)


def test_the_path_over_the_l2_values_ends_where_each_value_alone_ends():
    """Each fit starts where the two before it point to. That saves steps, and changes no choice."""
    x, y = clusters(600, 5, width=30, spread=4.0)
    learn, validate = map(torch.from_numpy, validation_split(y.numpy(), 0.1))
    mean, std, axes, variance = linear.principal_axes(x)
    z = (x - mean) / std @ axes
    alone = {}
    for l2 in linear.L2:
        found = linear.minimise(z[learn], y[learn], torch.zeros(5, 31), l2, variance, tolerance=1e-6)
        alone[l2] = accuracy((z[validate] @ found[:, :-1].T + found[:, -1]).argmax(dim=1), y[validate])
    best = linear.fit(x, y).l2
    assert max(alone.values()) - alone[best] <= 1.5 / len(validate)  # one image may hang on the last digits
    assert max(alone.values()) > max(alone[min(linear.L2)], alone[max(linear.L2)]) + 0.02


def test_axes_change_neither_distances_nor_variances():
    for x in (clusters(100, 3, width=30)[0], clusters(20, 3, width=30)[0]):
        mean, std, axes, variance = linear.principal_axes(x)
        standard = (x - mean) / std
        z = standard @ axes
        torch.testing.assert_close(z @ axes.T, standard, rtol=0, atol=1e-4)
        torch.testing.assert_close(z.var(dim=0, correction=0), variance, rtol=1e-3, atol=1e-4)
        assert axes.shape == (30, min(len(x), 30))


@pytest.mark.parametrize(("rows", "classes"), [(40, 3), (1000, 20_000)])  # the latter in several blocks
@pytest.mark.parametrize("several", [False, True])
def test_gradient_is_that_of_autograd(rows, classes, several):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, 6, generator=generator)
    y = torch.randint(classes, (rows,), generator=generator)
    if several:
        y = torch.nn.functional.one_hot(y, classes)
    parameters = torch.randn(classes, 7, generator=generator).requires_grad_(True)
    z = x @ parameters[:, :-1].T + parameters[:, -1]
    loss = (
        torch.nn.functional.binary_cross_entropy_with_logits(z, y.float(), reduction="sum") / rows
        if several
        else torch.nn.functional.cross_entropy(z, y)
    )
    loss = loss + 0.3 / 2 * parameters[:, :-1].square().sum()
    (expected,) = torch.autograd.grad(loss, parameters)
    value, gradient = linear.loss_and_gradient(x, y, parameters.detach(), 0.3)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)
    assert value.item() == pytest.approx(loss.item(), rel=1e-5)


@pytest.mark.parametrize("l2", [1e-6, 1e-5])
def test_nearly_free_weights_predict_as_scikit_learn_on_classes_that_can_be_separated(l2):
    x, y = clusters(300, 5, width=40)
    test_x, test_y = clusters(4000, 5, seed=1, width=40)
    scaler, expected = scikit_learn(x, y, l2)
    found = linear.fit(x, y, l2=[l2])
    theirs = torch.from_numpy(expected.predict(scaler.transform(test_x.double().numpy())))
    assert accuracy(classes(found, x), y) == 1.0
    assert accuracy(classes(found, test_x), test_y) == pytest.approx(accuracy(theirs, test_y), abs=0.005)


def test_l2_values_are_the_papers_45():
    assert len(linear.L2) == 45
    np.testing.assert_allclose(linear.L2, np.logspace(-6, 5, 45))


def test_chosen_l2_is_the_one_that_scikit_learn_does_best_with_on_the_validation_images():
    """Few images, useless features, one class rare: top-1 and the mean per class have other best values."""
    generator = np.random.default_rng(0)
    y = (generator.random(500) < 0.15).astype(int)
    x = generator.normal(size=(500, 150))
    x[:, :5] += 0.8 * y[:, None]
    values, learn, validate = [1e-4, 1e-2, 1e-1, 1.0, 100.0], *validation_split(y, 0.1, seed=3)
    standard = StandardScaler().fit_transform(x)
    models = [LogisticRegression(C=2 / (l2 * len(learn)), tol=1e-5, max_iter=2000) for l2 in values]
    predicted = [model.fit(standard[learn], y[learn]).predict(standard[validate]) for model in models]
    chosen = {}
    for metric, measure in (("top1", accuracy_score), ("mean_per_class", balanced_accuracy_score)):
        scores = [measure(y[validate], found) for found in predicted]
        found = linear.fit(torch.from_numpy(x).float(), torch.from_numpy(y), l2=values, seed=3, metric=metric)
        assert found.l2 == values[int(np.argmax(scores))]
        assert found.validation_images == len(validate)
        chosen[metric] = found.l2
    assert chosen["top1"] != chosen["mean_per_class"]


@pytest.mark.parametrize("several", [False, True])
def test_a_tenth_of_the_images_is_for_validation_and_another_tenth_with_another_seed(several):
    """What is chosen follows from the seed: with labels of pure noise every seed chooses another l2."""
    generator = np.random.default_rng(0)
    x = torch.from_numpy(generator.normal(size=(200, 5))).float()
    y = torch.from_numpy(generator.integers(0, 2, (200, 3) if several else 200))
    metric = "map11" if several else "top1"
    found = [linear.fit(x, y, l2=(1e-3, 0.1, 10.0), seed=seed, metric=metric) for seed in range(6)]
    assert [one.validation_images for one in found] == [20] * 6
    assert len({one.l2 for one in found}) > 1


def test_the_larger_of_equally_good_l2_values_is_taken():
    x, y = clusters(
        400, 3, spread=0.01
    )  # every value gets everything right, up to those that let nothing be learned
    assert linear.fit(x, y, l2=[1e-6, 1e-3, 1e-1]).l2 == 1e-1


def test_after_the_choice_all_images_are_learned_from():
    x, y = clusters(400, 4)
    found = linear.fit(x, y)
    once = linear.fit(x, y, l2=[found.l2])
    torch.testing.assert_close(found.classifier.weight, once.classifier.weight, rtol=0, atol=1e-4)
    torch.testing.assert_close(found.classifier.bias, once.classifier.bias, rtol=0, atol=1e-4)


def test_same_seed_gives_the_same_classifier_bit_for_bit_and_leaves_the_random_state():
    x, y = clusters(200, 4)
    state = torch.get_rng_state()
    first, second = linear.fit(x, y, seed=5), linear.fit(x, y, seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    assert first.l2 == second.l2
    assert torch.equal(first.classifier.weight, second.classifier.weight)


def test_constant_features_change_nothing():
    x, y = clusters(500, 4)
    test_x, _ = clusters(2000, 4, seed=1)
    alone = linear.fit(x, y, l2=[1e-3])
    constants = torch.tensor([0.0, 3.0, -1e6, 1e-20])
    joined = linear.fit(torch.cat([x, constants.expand(500, 4)], dim=1), y, l2=[1e-3])
    torch.testing.assert_close(joined.classifier.weight[:, :10], alone.classifier.weight, rtol=0, atol=2e-3)
    # What was constant in training has no say, whatever it is later.
    for elsewhere in (constants, constants + 100):
        found = classes(joined, torch.cat([test_x, elsewhere.expand(2000, 4)], dim=1))
        assert accuracy(found, classes(alone, test_x)) > 0.998


def test_features_that_are_all_constant_predict_the_commonest_class():
    y = torch.tensor([0, 1, 1, 1, 2] * 20)
    found = linear.fit(torch.full((100, 6), 7.0), y)
    assert classes(found, torch.full((4, 6), 7.0)).tolist() == [1] * 4


@pytest.mark.parametrize("scale", [1e-12, 1e-6, 1e6, 1e12])
def test_the_scale_of_features_does_not_matter(scale):
    x, y = clusters(500, 4)
    test_x, _ = clusters(2000, 4, seed=1)
    plain, scaled = (linear.fit(part, y, l2=linear.L2[::8]) for part in (x, x * scale))
    assert scaled.classifier.weight.isfinite().all()
    assert scaled.l2 == plain.l2
    assert accuracy(classes(scaled, test_x * scale), classes(plain, test_x)) > 0.998


def test_features_far_from_zero_are_as_good_as_centred_ones():
    x, y = clusters(500, 4)
    test_x, _ = clusters(2000, 4, seed=1)
    far, near = (linear.fit(part, y, l2=linear.L2[::8]) for part in (x + 1000, x))
    assert accuracy(classes(far, test_x + 1000), classes(near, test_x)) > 0.995


@pytest.mark.parametrize("count", [1, 2, 50])
def test_one_class_is_refused_in_a_sentence(count):
    with pytest.raises(DataError, match="two classes among the training images; there is one"):
        linear.fit(torch.rand(count, 4), torch.full((count,), 3))


def test_with_too_few_images_to_hold_some_out_the_middle_l2_is_taken():
    x, y = clusters(20, 3, spread=0.1)
    assert y.unique().numel() == 3
    found = linear.fit(x, y)  # a tenth is 2 images of 3 classes
    assert found.l2 == sorted(linear.L2)[22]
    assert accuracy(classes(found, x), y) == 1.0


def test_two_images_are_enough():
    x = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    found = linear.fit(x, torch.tensor([1, 0]), l2=[1e-3])
    assert classes(found, x).tolist() == [1, 0]


def test_classes_without_a_training_image_are_never_predicted():
    x, y = clusters(300, 3)
    found = linear.fit(x, torch.tensor([0, 2, 5])[y])
    assert found.classifier.weight.shape == (3, 10)
    assert set(classes(found, clusters(1000, 3, seed=1)[0]).tolist()) == {0, 2, 5}
    assert found.classifier.weight.isfinite().all()
    assert found.classifier.bias.isfinite().all()


def test_solver_ends_where_the_gradient_vanishes():
    x, y = clusters(500, 4)
    x = (x - x.mean(0)) / x.std(0)
    found = linear.minimise(x, y, torch.zeros(4, 11), 1e-2, torch.ones(10))
    weight, bias = found[:, :-1].requires_grad_(True), found[:, -1]
    loss = torch.nn.functional.cross_entropy(x @ weight.T + bias, y) + 1e-2 / 2 * weight.square().sum()
    (gradient,) = torch.autograd.grad(loss, weight)
    assert gradient.abs().max() < 1e-4


def test_numbers_of_classes_without_an_image_change_nothing_about_how_the_l2_is_chosen():
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(180) % 2
    x = torch.randn(180, 6, generator=generator) + y[:, None]
    plain, sparse = linear.fit(x, y), linear.fit(x, y * 999)
    assert plain.validation_images == sparse.validation_images == 18


def test_too_few_images_to_choose_the_l2_on_are_told(caplog):
    x, y = torch.randn(12, 4, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 3
    assert linear.fit(x, y).validation_images == 0
    assert (
        "fewer than ten images a class on average: no l2 is chosen, the middle of 45 is taken" in caplog.text
    )
    caplog.clear()
    assert linear.fit(x, y, l2=(0.1,)).l2 == 0.1
    assert caplog.text == ""

from itertools import pairwise

import numpy as np
import pytest
import sklearn.model_selection
import torch
from sklearn.model_selection import StratifiedShuffleSplit

from byol.errors import ConfigError, DataError
from byol.evaluation.subsets import Amount, few, train_test_split, validation_split

BALANCED = np.random.default_rng(0).permutation(np.arange(2000) % 10)
LONG_TAIL = np.random.default_rng(1).permutation(np.repeat(np.arange(6), [500, 200, 100, 30, 4, 1]))


def counts(labels: np.ndarray, rows: np.ndarray) -> list[int]:
    return np.bincount(labels[rows], minlength=labels.max() + 1).tolist()


# Subsets


@pytest.mark.parametrize("percent", [1, 5, 10, 50, 100])
def test_a_percentage_of_balanced_labels_is_as_many_of_every_class(percent):
    rows = few(BALANCED, Amount(percent))
    assert counts(BALANCED, rows) == [2 * percent] * 10
    assert rows.tolist() == sorted(set(rows.tolist()))


@pytest.mark.parametrize("percent", [10, 25, 60])
def test_a_percentage_of_unbalanced_labels_is_what_scikit_learn_takes_of_every_class(percent):
    labels = LONG_TAIL[LONG_TAIL < 4]
    [(theirs, _)] = StratifiedShuffleSplit(1, train_size=percent / 100, random_state=0).split(labels, labels)
    # Within one image: scikit-learn rounds so that the whole comes out even.
    np.testing.assert_allclose(counts(labels, few(labels, Amount(percent))), counts(labels, theirs), atol=1)


def test_a_percentage_of_a_class_is_rounded_to_the_nearest_number():
    labels = np.repeat(np.arange(4), [14, 15, 24, 26])
    assert counts(labels, few(labels, Amount(10))) == [1, 2, 2, 3]


def test_every_class_gives_at_least_one_image():
    assert counts(LONG_TAIL, few(LONG_TAIL, Amount(0.1))) == [1] * 6


def test_a_number_per_class_is_that_number_of_every_class_that_occurs():
    labels = np.repeat([3, 7, 8], [5, 9, 20])
    assert counts(labels, few(labels, Amount(4, per_class=True))) == [0, 0, 0, 4, 0, 0, 0, 4, 4]


def test_smaller_subsets_lie_within_larger_ones():
    amounts = [
        Amount(1, per_class=True),
        Amount(1),
        Amount(5, per_class=True),
        Amount(10),
        Amount(37.5),
        Amount(100),
    ]
    subsets = [set(few(BALANCED, amount, seed=3).tolist()) for amount in amounts]
    for smaller, larger in pairwise(subsets):
        assert smaller < larger
    assert subsets[-1] == set(range(2000))


def test_a_subset_is_fixed_by_the_seed_and_by_nothing_else():
    torch.manual_seed(1)
    first = few(BALANCED, Amount(5), seed=2)
    torch.manual_seed(2)
    np.random.seed(2)
    assert np.array_equal(first, few(BALANCED, Amount(5), seed=2))
    assert not np.array_equal(first, few(BALANCED, Amount(5), seed=3))
    # Known from before: whoever changes the draws changes what every published score was learned from.
    assert few(BALANCED, Amount(1, per_class=True), seed=0).tolist() == KNOWN


KNOWN = [1383, 1444, 1571, 1606, 1633, 1805, 1815, 1881, 1931, 1997]


def test_every_image_is_as_likely_as_every_other():
    labels = np.arange(40) % 4
    chosen = sum(np.bincount(few(labels, Amount(30), seed), minlength=40) for seed in range(400))
    assert chosen.sum() == 400 * 12
    assert np.abs(chosen - 120).max() < 5 * np.sqrt(400 * 0.3 * 0.7)  # five standard deviations of a binomial


def test_fewer_images_than_requested_are_told_with_the_class_and_what_is_possible():
    with pytest.raises(
        DataError,
        match=r"Class heron has 4 labelled images, of 10 per class that were requested.*at most 1 per",
    ):
        few(LONG_TAIL, Amount(10, per_class=True), classes=["a", "b", "c", "d", "heron", "ibis"])


@pytest.mark.parametrize(
    ("text", "amount", "words"),
    [
        ("1", Amount(1), "1 %"),
        ("0.5", Amount(0.5), "0.5 %"),
        ("10%", Amount(10), "10 %"),
        ("100 %", Amount(100), "100 %"),
        ("25-per-class", Amount(25, per_class=True), "25 per class"),
        ("1 per class", Amount(1, per_class=True), "1 per class"),
    ],
)
def test_amounts_are_read_and_said_in_words(text, amount, words):
    assert Amount.parse(text) == amount
    assert str(amount) == words == str(Amount.parse(words))


@pytest.mark.parametrize(
    "text", ["", "ten", "-1", "0", "101", "1e3", "2.5-per-class", "0-per-class", "5 per cent", "nan"]
)
def test_what_is_not_an_amount_is_refused_in_a_sentence(text):
    with pytest.raises(ConfigError, match="expected"):
        Amount.parse(text)


# The part to choose on


@pytest.mark.parametrize("share", [0.1, 0.2, 0.5])
def test_the_validation_part_is_the_same_share_of_every_class(share):
    learn, choose = validation_split(BALANCED, share)
    assert counts(BALANCED, choose) == [round(200 * share)] * 10
    assert sorted([*learn, *choose]) == list(range(2000))
    assert sorted(learn) == list(learn)


def test_every_class_gives_one_to_choose_on_and_keeps_one_to_learn_from():
    labels = np.repeat(np.arange(4), [1, 2, 3, 10])
    learn, choose = validation_split(labels, 0.01)
    assert counts(labels, choose) == [0, 1, 1, 1]
    learn, choose = validation_split(labels, 0.99)
    assert counts(labels, learn) == [1, 1, 1, 1]


def test_one_image_per_class_leaves_nothing_to_choose_on():
    learn, choose = validation_split(np.arange(5), 0.2)
    assert learn.tolist() == list(range(5))
    assert len(choose) == 0


def test_the_validation_part_is_fixed_by_the_seed_and_apart_from_the_subsets():
    first = validation_split(BALANCED, 0.1, seed=1)[1]
    assert np.array_equal(first, validation_split(BALANCED, 0.1, seed=1)[1])
    assert not np.array_equal(first, validation_split(BALANCED, 0.1, seed=2)[1])
    assert not np.array_equal(first, few(BALANCED, Amount(10), seed=1))


# A test split of one labelled set


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5])
def test_a_test_split_of_balanced_labels_is_as_large_as_scikit_learns(share):
    learn, score = train_test_split(BALANCED, share, seed=3)
    _, theirs = sklearn.model_selection.train_test_split(
        np.arange(len(BALANCED)), test_size=share, stratify=BALANCED, random_state=3
    )
    assert counts(BALANCED, score) == counts(BALANCED, theirs)
    assert sorted([*learn, *score]) == list(range(2000))


@pytest.mark.parametrize("share", [0.01, 0.3, 0.99])
def test_every_class_of_two_images_is_on_both_sides_of_a_test_split(share):
    labels = np.repeat(np.arange(5), [1, 2, 3, 10, 100])
    learn, score = train_test_split(labels, share)
    assert set(labels[learn]) == {0, 1, 2, 3, 4}
    assert set(labels[score]) == {1, 2, 3, 4}


def test_a_test_split_follows_from_the_seed_and_is_apart_from_the_validation_part():
    first = train_test_split(BALANCED, 0.1, seed=1)[1]
    assert np.array_equal(first, train_test_split(BALANCED, 0.1, seed=1)[1])
    assert not np.array_equal(first, train_test_split(BALANCED, 0.1, seed=2)[1])
    assert not np.array_equal(first, validation_split(BALANCED, 0.1, seed=1)[1])


@pytest.mark.parametrize("seed", range(3))
def test_multi_label_images_are_divided_nearly_in_proportion_for_every_class(seed):
    """Classes from 0.5 % to 60 %, some of them always together, and images of none."""
    generator = np.random.default_rng(seed)
    labels = (generator.random((2000, 8)) < [0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6]).astype(np.int64)
    labels[:, 7] |= labels[:, 0]
    learn, score = train_test_split(labels, 0.3, seed)
    assert sorted([*learn, *score]) == list(range(2000))
    assert len(score) == pytest.approx(600, abs=40)
    assert labels[score].sum(axis=0) == pytest.approx(0.3 * labels.sum(axis=0), abs=8)
    assert (labels[score].sum(axis=0) > 0).all()
    assert (labels[learn].sum(axis=0) > 0).all()
    assert (labels[score].sum(axis=1) == 0).mean() == pytest.approx(
        (labels.sum(axis=1) == 0).mean(), abs=0.03
    )

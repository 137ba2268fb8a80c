import numpy as np
import pytest
from scipy import stats

from byol.evaluation.metrics import RESAMPLES, interval, top1


def answers(right: int, count: int) -> np.ndarray:
    """Some right answers among all, bool (count,)."""
    return np.random.default_rng(0).permutation(np.arange(count) < right)


@pytest.mark.parametrize(("right", "count"), [(0, 3), (1, 3), (7, 10), (250, 1000), (10, 10)])
def test_top1_is_the_share_of_right_answers(right, count):
    assert top1(answers(right, count)) == pytest.approx(right / count)


@pytest.mark.parametrize(("right", "count"), [(5, 20), (150, 200), (500, 1000), (990, 1000), (7000, 10_000)])
def test_interval_is_that_of_a_bootstrap_over_the_images(right, count):
    correct = answers(right, count)
    low, high = interval(correct)
    expected = stats.bootstrap(
        (correct.astype(float),), np.mean, n_resamples=4000, method="percentile", batch=500, rng=np.random.default_rng(1)
    ).confidence_interval
    noise = 6 * correct.std() / np.sqrt(count) / np.sqrt(RESAMPLES) + 1 / count  # of percentiles of 1,000 resamples
    assert low == pytest.approx(expected.low, abs=noise)
    assert high == pytest.approx(expected.high, abs=noise)
    assert low < top1(correct) < high


def test_interval_covers_the_truth_in_about_95_of_100_samples():
    generator = np.random.default_rng(0)
    covered = []
    for _ in range(1000):
        low, high = interval(generator.random(400) < 0.7, seed=int(generator.integers(2**31)))
        covered.append(low <= 0.7 <= high)
    assert 0.92 < np.mean(covered) < 0.97


@pytest.mark.parametrize("count", [1, 5, 1000])
def test_interval_of_all_right_or_all_wrong_is_that_one_number(count):
    assert interval(np.ones(count, dtype=bool)) == (1.0, 1.0)
    assert interval(np.zeros(count, dtype=bool)) == (0.0, 0.0)


def test_interval_stays_within_0_and_1_and_holds_plain_floats():
    low, high = interval(answers(1, 3))
    assert 0 <= low <= high <= 1
    assert type(low) is type(high) is float


def test_interval_is_the_same_for_the_same_seed():
    correct = answers(150, 200)
    state = np.random.get_state()[1].copy()
    assert interval(correct) == interval(correct)
    assert interval(correct, seed=1) == interval(correct, seed=1) != interval(correct)
    assert (np.random.get_state()[1] == state).all()

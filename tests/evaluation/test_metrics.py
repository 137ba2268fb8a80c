import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import balanced_accuracy_score, precision_recall_curve, top_k_accuracy_score

from byol.errors import ConfigError, TrainingError
from byol.evaluation.metrics import RESAMPLES, interval, likeliest, measure, metric_for, predict


def judged(count: int, classes: int, seed: int = 0, help: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Scores (count, classes) that prefer the right class a little, and the classes, some of them rare."""
    generator = np.random.default_rng(seed)
    labels = generator.choice(classes, count, p=(weights := np.arange(1, classes + 1)) / weights.sum())
    scores = generator.normal(size=(count, classes))
    scores[np.arange(count), labels] += help
    return scores, labels


def tagged(count: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Scores (count, classes) with many ties, and which classes each image is of."""
    generator = np.random.default_rng(seed)
    labels = (generator.random((count, classes)) < 0.3).astype(np.int64)
    return np.round(labels + 1.2 * generator.normal(size=labels.shape), 1), labels


# Metrics


def ranked(scores: np.ndarray) -> np.ndarray:
    """What is kept of scores."""
    scores = torch.from_numpy(scores)
    return likeliest(scores, torch.arange(scores.shape[1])).numpy()


@pytest.mark.parametrize("classes", [3, 20])
def test_top1_and_top5_are_those_of_scikit_learn(classes):
    scores, labels = judged(500, classes)
    found = ranked(scores)
    assert found.shape == (500, min(classes, 5))
    assert measure("top1", found, labels) == pytest.approx((scores.argmax(axis=1) == labels).mean())
    for k in (1, 2, 5):
        if k < classes:
            expected = top_k_accuracy_score(labels, scores, k=k, labels=np.arange(classes))
            assert (found[:, :k] == labels[:, None]).any(axis=1).mean() == pytest.approx(expected)
    assert 0.1 < measure("top1", found, labels) < 0.9


def test_of_equal_scores_the_lower_class_comes_first_as_argmax_has_it():
    assert ranked(np.zeros((2, 40))).tolist() == [[0, 1, 2, 3, 4]] * 2
    several = np.random.default_rng(0).integers(0, 3, (300, 40)).astype(np.float32)
    assert np.array_equal(ranked(several), np.argsort(-several, axis=1, kind="stable")[:, :5])


def test_a_class_that_is_not_predicted_is_wrong_however_many_count():
    scores = np.array([[1.0, -np.inf, -np.inf], [-np.inf, -np.inf, -np.inf]])
    assert ranked(scores).tolist() == [[0, -1, -1], [-1, -1, -1]]


def test_columns_are_the_classes_that_occur():
    classes = torch.tensor([3, 70, 999_999])
    assert likeliest(torch.tensor([[0.0, 2.0, 1.0]]), classes, 2).tolist() == [[70, 999_999]]


@pytest.mark.parametrize("classes", [None, torch.arange(20_000)])
def test_predictions_are_made_in_blocks_and_nan_is_refused(classes):
    """For 1,000 images of 20,000 classes never more than 2**24 scores at once."""
    sizes = []

    def scores(rows: torch.Tensor) -> torch.Tensor:
        sizes.append(len(rows))
        return torch.randn(len(rows), 20_000, generator=torch.Generator().manual_seed(int(rows[0])))

    found = predict(torch.arange(1_000), scores, classes, width=20_000)
    assert max(sizes) * 20_000 <= 2**24
    assert sum(sizes) == 1_000
    again = scores(torch.arange(sizes[0]))
    expected = again if classes is None else torch.from_numpy(ranked(again.numpy()))
    assert torch.equal(found[: sizes[0]], expected)
    with pytest.raises(TrainingError, match="NaN"):
        predict(torch.zeros(3, 1), lambda x: x.log() - x.log(), classes, width=1)


def test_mean_per_class_is_the_balanced_accuracy_of_scikit_learn():
    scores, labels = judged(400, 7)
    labels[labels == 3], scores[:, 3] = 4, -9.0  # a class without an image
    expected = balanced_accuracy_score(labels, scores.argmax(axis=1))
    assert measure("mean_per_class", ranked(scores), labels) == pytest.approx(expected)
    assert measure("mean_per_class", ranked(scores) * 100_000, labels * 100_000) == pytest.approx(expected)
    assert abs(expected - measure("top1", ranked(scores), labels)) > 0.005


def eleven_points(scores: np.ndarray, truth: np.ndarray) -> float:
    """VOC 2007's from scikit-learn's curve: the mean over 11 recalls of the best precision from there on."""
    precision, recall, _ = precision_recall_curve(truth, scores)
    precision, right = (
        precision[:-1],
        np.round(recall[:-1] * truth.sum()),
    )  # the last is a point that nobody measured
    return float(np.mean([precision[10 * right >= tenth * truth.sum()].max() for tenth in range(11)]))


@pytest.mark.parametrize("count", [7, 50, 1000])
def test_mean_average_precision_is_voc_2007s_from_the_curves_of_scikit_learn(count):
    scores, labels = tagged(count, 6)
    columns = [c for c in range(6) if labels[:, c].any()]
    expected = np.mean([eleven_points(scores[:, c], labels[:, c]) for c in columns])
    assert measure("map11", scores, labels) == pytest.approx(expected, abs=1e-12)
    assert 0.3 < expected < 0.95


def test_average_precision_worked_by_hand():
    """Ranked right, wrong, right: precision 1 up to recall 1/2 (six points), 2/3 up to recall 1 (five)."""
    scores, labels = np.array([[3.0], [2.0], [1.0]]), np.array([[1], [0], [1]])
    assert measure("map11", scores, labels) == pytest.approx((6 * 1 + 5 * 2 / 3) / 11)


def test_equal_scores_are_taken_all_at_once_whatever_the_order_of_the_images():
    labels = np.array([[1], [0], [0], [0]])
    for turn in range(4):
        assert measure("map11", np.zeros((4, 1)), np.roll(labels, turn, axis=0)) == pytest.approx(0.25)


def test_a_class_without_a_test_image_is_left_out_of_the_mean():
    scores, labels = tagged(60, 4)
    alone = measure("map11", scores[:, :3], labels[:, :3])
    labels[:, 3] = 0
    assert measure("map11", scores, labels) == pytest.approx(alone)
    assert measure("map11", scores, np.zeros_like(labels)) == 0.0


def test_a_metric_that_the_labels_do_not_allow_is_refused():
    one, several = np.zeros(3, dtype=np.int64), np.eye(3, dtype=np.int64)
    assert (metric_for(one, None), metric_for(several, None)) == ("top1", "map11")
    with pytest.raises(ConfigError, match=r"no metric 'top-1'\. Did you mean 'top1'"):
        metric_for(one, "top-1")
    with pytest.raises(
        ConfigError, match="The metric is map11, but these images are of one label each; expected top1"
    ):
        metric_for(one, "map11")
    with pytest.raises(
        ConfigError, match="The metric is top1, but these images are multi-label; expected map11"
    ):
        metric_for(several, "top1")


# Intervals


def predicted(right: int, count: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Predictions among two classes that are right for some images, and the classes."""
    correct = np.random.default_rng(0).permutation(np.arange(count) < right)
    return [correct[:, None].astype(np.int64)], np.ones(count, dtype=np.int64)


@pytest.mark.parametrize(("right", "count"), [(5, 20), (150, 200), (500, 1000), (990, 1000), (7000, 10_000)])
def test_interval_of_top1_is_that_of_a_bootstrap_over_the_images(right, count):
    scores, labels = predicted(right, count)
    low, high = interval("top1", scores, labels)
    correct = scores[0][:, 0]
    expected = stats.bootstrap(
        (correct,), np.mean, n_resamples=4000, method="percentile", batch=500, rng=np.random.default_rng(1)
    ).confidence_interval
    noise = (
        6 * correct.std() / np.sqrt(count) / np.sqrt(RESAMPLES) + 1 / count
    )  # of percentiles of 1,000 resamples
    assert low == pytest.approx(expected.low, abs=noise)
    assert high == pytest.approx(expected.high, abs=noise)
    assert low < right / count < high


@pytest.mark.parametrize("metric", ["mean_per_class", "map11"])
def test_interval_of_other_metrics_is_that_of_resampled_images(metric):
    """A bootstrap the long way: images drawn with replacement, where precisions come out too high."""
    scores, labels = tagged(150, 3) if metric == "map11" else judged(300, 4)
    scores = scores if metric == "map11" else ranked(scores)
    generator = np.random.default_rng(5)
    drawn = []
    for _ in range(1500):
        rows = generator.integers(len(labels), size=len(labels))
        drawn.append(measure(metric, scores[rows], labels[rows]))
    noise = 0.2 * np.std(drawn)
    bias = np.mean(drawn) - measure(metric, scores, labels) if metric == "map11" else 0.0
    assert interval(metric, [scores], labels) == pytest.approx(
        np.percentile(drawn, (2.5, 97.5)) - bias, abs=noise
    )


def test_interval_of_several_seeds_is_of_their_mean_over_the_same_images():
    """Two classifiers that err on other images: their mean is surer than each alone."""
    labels = np.ones(400, dtype=np.int64)
    halves = [half[:, None].astype(np.int64) for half in (np.arange(400) < 220, np.arange(400) >= 180)]
    (low, high), (alone_low, alone_high) = (
        interval("top1", halves, labels),
        interval("top1", halves[:1], labels),
    )
    assert alone_low < low < 0.55 < high < alone_high
    assert interval("top1", [halves[0], halves[0]], labels) == interval("top1", halves[:1], labels)


def test_interval_covers_the_truth_in_about_95_of_100_samples():
    generator = np.random.default_rng(0)
    covered = []
    for _ in range(500):
        correct = generator.random(400) < 0.7
        found, seed = correct[:, None].astype(np.int64), int(generator.integers(2**31))
        low, high = interval("top1", [found], np.ones(400, dtype=np.int64), seed=seed)
        covered.append(low <= 0.7 <= high)
    assert 0.92 < np.mean(covered) < 0.98


@pytest.mark.parametrize("count", [1, 5, 1000])
def test_interval_of_all_right_or_all_wrong_is_wilsons(count):
    """A bootstrap knows no other images than these, and would claim certainty after a single one."""
    for right in (count, 0):
        expected = stats.binomtest(right, count).proportion_ci(method="wilson")
        assert interval("top1", *predicted(right, count)) == pytest.approx(tuple(expected), abs=1e-6)
    labels = np.repeat([0, 1], count)
    low, high = interval("mean_per_class", [np.zeros((2 * count, 1), dtype=np.int64)], labels)
    assert low < 0.5 < high  # one class always right, the other never
    several = np.eye(2, dtype=np.int64)[labels]
    expected = stats.binomtest(2 * count, 2 * count).proportion_ci(method="wilson")
    assert interval("map11", [several.astype(float)], several) == pytest.approx(tuple(expected), abs=1e-6)


def test_interval_stays_within_0_and_1_and_holds_plain_floats():
    low, high = interval("top1", *predicted(1, 3))
    assert 0 <= low <= high <= 1
    assert type(low) is type(high) is float


def test_interval_is_the_same_for_the_same_seed():
    scores, labels = predicted(150, 200)
    state = np.random.get_state()[1].copy()
    assert interval("top1", scores, labels) == interval("top1", scores, labels)
    assert interval("top1", scores, labels, seed=1) == interval("top1", scores, labels, seed=1)
    assert interval("top1", scores, labels, seed=1) != interval("top1", scores, labels)
    assert (np.random.get_state()[1] == state).all()


def test_the_interval_of_a_mean_average_precision_lies_around_it():
    """Resampled, images come twice, which raises a precision: the plain percentiles lie too high."""
    generator = np.random.default_rng(0)
    inside, middles = [], []
    for _ in range(20):
        labels = (generator.random((40, 3)) < 0.2).astype(int)
        labels[0] = 1
        scores = labels + generator.normal(0, 1.5, labels.shape)
        value = measure("map11", scores, labels)
        low, high = interval("map11", [scores], labels)
        inside.append(low < value < high)
        middles.append((low + high) / 2 - value)
    assert all(inside)
    assert abs(np.mean(middles)) < 0.02


def test_the_interval_of_a_difference_is_that_of_paired_images():
    """For shares it is close to McNemar's normal approximation, which knows only who was right alone."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, 500)
    hard = generator.random(500) < 0.3  # for both alike
    ours = np.where(hard, (labels + 1) % 3, labels)
    theirs = np.where(generator.random(500) < 0.08, (labels + 1) % 3, ours)
    low, high = interval("top1", [ours[:, None]], labels, against=[theirs[:, None]])
    alone, other = (
        np.mean((ours == labels) & (theirs != labels)),
        np.mean((ours != labels) & (theirs == labels)),
    )
    half = 1.96 * np.sqrt((alone + other - (alone - other) ** 2) / 500)
    assert (low, high) == pytest.approx((alone - other - half, alone - other + half), abs=0.006)
    apart = [interval("top1", [found[:, None]], labels) for found in (ours, theirs)]
    assert apart[0][0] < apart[1][1]  # each alone they overlap
    assert low > 0
    swapped = interval("top1", [theirs[:, None]], labels, against=[ours[:, None]])
    assert swapped == pytest.approx((-high, -low), abs=1e-9)


@pytest.mark.parametrize("metric", ["top1", "mean_per_class", "map11"])
def test_the_same_predictions_differ_by_nothing_and_few_images_say_little(metric):
    labels = np.arange(40) % 4
    found = labels[:, None].copy()
    found[:10] = (found[:10] + 1) % 4
    if metric == "map11":
        labels, found = np.eye(4, dtype=np.int64)[labels], np.random.default_rng(0).random((40, 4))
    low, high = interval(metric, [found], labels, against=[found])
    assert -0.2 < low < 0 < high < 0.2


def test_the_interval_of_a_difference_counts_classes_alike_where_the_metric_does():
    labels = np.repeat([0, 1], [380, 20])
    ours, theirs = labels[:, None].copy(), np.zeros((400, 1), dtype=np.int64)
    ours[:38] = 1  # a tenth of the large class is wrong, in turn the small one is right
    for metric, difference in (("top1", (20 - 38) / 400), ("mean_per_class", (1 - 0.1) / 2)):
        low, high = interval(metric, [ours], labels, against=[theirs])
        assert low < difference < high
        assert (low > 0) == (metric == "mean_per_class")


@pytest.mark.parametrize(("more", "images"), [(4, 4), (5, 20), (6, 20), (4, 1000)])
def test_too_few_images_for_mcnemars_exact_test_tell_nothing_apart(more, images):
    labels = np.zeros(images, dtype=np.int64)
    ours, theirs = labels[:, None], (np.arange(images) < more).astype(np.int64)[:, None]
    low, high = interval("top1", [ours], labels, against=[theirs])
    assert (low > 0) == (stats.binomtest(0, more).pvalue < 0.05)
    assert high > 0
    swapped = interval("top1", [theirs], labels, against=[ours])
    assert swapped == pytest.approx((-high, -low), abs=1e-9)


def test_a_paired_interval_holds_the_true_difference_nineteen_times_in_twenty():
    generator = np.random.default_rng(0)
    hits, true = 0, 0.12
    for _ in range(500):
        both = generator.random((200, 2))
        easy = both[:, 0] < 0.4  # for both; of the others one is right in 0.3, the other in 0.1
        sides = (easy | (both[:, 1] < 0.3), easy | (both[:, 1] > 0.9))
        ours, theirs = ([np.where(side, 0, -1)[:, None]] for side in sides)
        low, high = interval("top1", ours, np.zeros(200, dtype=np.int64), against=theirs)
        hits += low < true < high
    assert 0.92 <= hits / 500 <= 0.97

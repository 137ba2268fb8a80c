"""What to label first, beside a plain k-centre in numpy; clusters, beside scikit-learn."""

import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.datasets import make_blobs
from sklearn.metrics import adjusted_rand_score

from byol.errors import ConfigError, DataError
from byol.features import features as files, select
from byol.features.features import Features
from byol.features.select import clusters, pick


def rows_of(count: int, width: int = 9, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)


def unit(x) -> np.ndarray:
    x = np.asarray(x, dtype=np.float64)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def k_centre(x, count: int, chosen: list[int], weight=1.0) -> list[int]:
    """Farthest-first traversal, in float64, from the whole table of distances."""
    u = unit(x)
    table = np.linalg.norm(u[:, None] - u[None], axis=2)
    chosen = list(chosen)
    before = len(chosen)
    while len(chosen) < before + count:
        distance = table[:, chosen].min(axis=1) * weight
        distance[chosen] = -1
        chosen.append(int(distance.argmax()))
    return chosen[before:]


@pytest.fixture(params=[2**24, 4 * 9 * 33])
def block(request, monkeypatch) -> int:
    monkeypatch.setattr(files, "BLOCK", request.param)
    return request.param


def test_each_pick_is_the_farthest_from_those_before(block):
    x = rows_of(150) + 1
    central = int((unit(x) @ unit(x).mean(axis=0)).argmax())
    assert pick(Features(x), 40).tolist() == [central, *k_centre(x, 39, [central])]


def test_labelled_images_count_as_chosen_and_are_not_picked(block):
    x = rows_of(150)
    found = pick(x, 30, labelled=[3, 77, 3])
    assert found.tolist() == k_centre(x, 30, [3, 77])
    assert not {3, 77} & set(found.tolist())


def test_uncertainty_draws_picks_to_it(block):
    x, uncertainty = rows_of(150), np.random.default_rng(1).random(150)
    first = int(uncertainty.argmax())
    assert pick(x, 30, uncertainty=uncertainty).tolist() == [first, *k_centre(x, 29, [first], uncertainty)]
    assert pick(x, 30, labelled=[5], uncertainty=uncertainty).tolist() == k_centre(x, 30, [5], uncertainty)


def test_the_uncertainty_of_probabilities_is_one_minus_the_margin_of_the_two_likeliest():
    x, probabilities = rows_of(100), np.random.default_rng(1).dirichlet(np.ones(5), 100)
    ordered = np.sort(probabilities, axis=1)
    margin = ordered[:, -1] - ordered[:, -2]
    assert np.array_equal(pick(x, 20, uncertainty=probabilities), pick(x, 20, uncertainty=1 - margin))


def test_picks_reach_every_cloud_before_any_twice():
    centres = np.eye(12)
    x = np.repeat(centres, [1, 500, 3, 40, 1, 1, 9, 200, 2, 5, 1, 60], axis=0)
    cloud = x.argmax(axis=1)
    x = x + 0.05 * np.random.default_rng(0).normal(size=x.shape)
    assert len(set(cloud[pick(x, 12)].tolist())) == 12


def test_the_radius_is_at_most_twice_that_of_k_means_centres():
    """Gonzalez: at most twice the best radius there is, and k-means' is no better than that."""
    x = unit(rows_of(2000, 6))
    chosen = pick(x, 20)
    radius = np.linalg.norm(x[:, None] - x[chosen][None], axis=2).min(axis=1).max()
    other = np.linalg.norm(
        x[:, None] - KMeans(20, n_init=2, random_state=0).fit(x).cluster_centers_[None], axis=2
    )
    assert radius <= 2 * other.min(axis=1).max()


def test_no_image_is_picked_twice_even_among_copies():
    assert np.sort(pick(np.ones((6, 3)), 99)).tolist() == list(range(6))
    assert np.sort(pick(np.ones((6, 3)), 99, labelled=[2])).tolist() == [0, 1, 3, 4, 5]
    assert np.sort(pick(np.ones((6, 3)), 99, uncertainty=np.zeros(6))).tolist() == list(range(6))
    assert len(pick(np.ones((2, 3)), 5, labelled=[0, 1])) == 0


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_the_scale_of_features_does_not_matter(scale):
    """The squares of such numbers overflow, or vanish."""
    x = rows_of(60) + 1
    assert np.array_equal(pick(x * np.float32(scale), 20), pick(x, 20))
    assert adjusted_rand_score(clusters(x * np.float32(scale), 4).labels, clusters(x, 4).labels) == 1


@pytest.mark.parametrize(
    ("uncertainty", "says"),
    [
        *((odd, "expected a number from 0 for each of the 5 feature rows") for odd in (
            np.ones(4), np.ones((5, 1)), np.ones((5, 0)), np.ones((4, 3)), np.ones((5, 2, 2)),
            np.array(list("abcde")), 1.0,
        )),
        (np.full(5, np.nan), "NaN, infinity or negative"),
        (np.full((5, 2), np.nan), "NaN, infinity or negative"),
        (np.full(5, -1.0), "NaN, infinity or negative"),
        (np.tile([1.5, -0.5], (5, 1)), "NaN, infinity or negative"),
        (np.full((5, 3), 7.0), "rows that do not sum to 1; expected class probabilities"),
    ],
)  # fmt: skip
def test_uncertainty_that_does_not_fit_is_told(uncertainty, says):
    with pytest.raises(DataError, match=says):
        pick(rows_of(5), 2, uncertainty=uncertainty)


@pytest.mark.parametrize(
    ("options", "message"), [({"count": 0}, "is 0"), ({"count": 1, "labelled": [5]}, "no row 5")]
)
def test_picks_that_cannot_be_made_are_told(options, message):
    with pytest.raises(ConfigError, match=message):
        pick(rows_of(5), **options)


# Clusters


def test_clusters_are_as_tight_as_those_of_scikit_learn(block):
    x = rows_of(600, 5)
    found = clusters(Features(x), 12)
    best = KMeans(12, n_init=10, random_state=1).fit(unit(x))
    assert (found.distances**2).sum() <= 1.02 * best.inertia_
    centres = np.stack([unit(x)[found.labels == number].mean(axis=0) for number in range(12)])
    np.testing.assert_allclose(found.centres, centres, atol=0.02)
    np.testing.assert_allclose(
        found.distances, np.linalg.norm(unit(x) - found.centres[found.labels], axis=1), atol=1e-5
    )


def test_clusters_of_a_sample_reach_all_rows(monkeypatch):
    monkeypatch.setattr(select, "SAMPLE", 300)
    x, y = make_blobs(5000, 8, centers=10 * np.eye(8)[:5], random_state=0)
    monkeypatch.setattr(select, "PER_CLUSTER", 40)
    found = clusters(x, 5)
    assert adjusted_rand_score(y, found.labels) > 0.99
    assert len(found.labels) == 5000


def test_the_largest_cluster_comes_first_and_the_same_seed_gives_the_same():
    x, _ = make_blobs([50, 300, 100], 4, centers=10 * np.eye(4)[:3], random_state=0)
    found = clusters(x, 3)
    assert np.bincount(found.labels).tolist() == [300, 100, 50]
    assert np.array_equal(clusters(x, 3).labels, found.labels)


def test_fewer_different_rows_than_clusters_leave_some_empty():
    found = clusters(np.repeat(np.eye(3), 4, axis=0), 5)
    assert sorted(np.bincount(found.labels).tolist()) == [4, 4, 4]
    assert found.centres.shape == (5, 3)


@pytest.mark.parametrize("count", [0, -1, 6])
def test_numbers_of_clusters_that_cannot_be_are_refused(count):
    with pytest.raises(ConfigError, match="clusters of 5 rows; expected from 1"):
        clusters(rows_of(5), count)

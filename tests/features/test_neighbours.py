"""Neighbours, near-duplicates and outliers, beside scikit-learn and SciPy in float64."""

import numpy as np
import pytest
import torch
from scipy.sparse.csgraph import connected_components
from sklearn.neighbors import NearestNeighbors

from byol.errors import ConfigError, DataError
from byol.features import features as files, neighbours
from byol.features.features import Features
from byol.features.neighbours import near_duplicates, nearest, outliers, search


def rows_of(count: int, width: int = 9, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)


def by_scikit_learn(x, queries, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Similarities and rows, in float64."""
    model = NearestNeighbors(n_neighbors=k, metric="cosine", algorithm="brute").fit(x.astype(np.float64))
    distances, rows = model.kneighbors(queries.astype(np.float64))
    return 1 - distances, rows


@pytest.fixture(params=[2**24, 4 * 9 * 100, 4 * 9 * 17])
def block(request, monkeypatch) -> int:
    """Everything at once, two blocks, several and one that is not full."""
    monkeypatch.setattr(files, "BLOCK", request.param)
    monkeypatch.setattr(neighbours, "BLOCK", request.param)
    return request.param


@pytest.mark.parametrize("k", [1, 7, 200])
def test_neighbours_are_those_of_scikit_learn_whatever_the_block(block, k):
    x, queries = rows_of(200), rows_of(31, seed=1)
    similarities, rows = by_scikit_learn(x, queries, k)
    found = search(Features(x), queries, k=k)
    assert np.array_equal(found.rows, rows)
    np.testing.assert_allclose(found.similarities, similarities, rtol=0, atol=1e-6)
    assert (found.rows.dtype, found.similarities.dtype) == (np.int64, np.float32)


def test_features_arrays_and_tensors_are_searched_alike():
    x, queries = rows_of(50), rows_of(3, seed=1)
    expected = search(Features(x), Features(queries), k=4)
    for bank, queried in (
        (x, queries),
        (torch.from_numpy(x), torch.from_numpy(queries)),
        (x.astype(np.float64), queries.tolist()),
    ):
        found = search(bank, queried, k=4)
        assert np.array_equal(found.rows, expected.rows)


def test_of_equal_cosines_the_lower_row_comes_first(block):
    """As in numpy's stable sort, wherever the last one falls among equals; rows of zeros are like nothing."""
    kinds = np.eye(10, 9, dtype=np.float32)  # whose cosines are 0 and 1 exactly; the last is zero
    numbers = np.random.default_rng(0).integers(0, 10, 300)
    cosines = kinds @ kinds[numbers].T
    for k in (1, 5, 40, 250):
        found = search(kinds[numbers], kinds, k=k)
        assert np.array_equal(found.rows, np.argsort(-cosines, axis=1, kind="stable")[:, :k])
    assert search(np.zeros((300, 9)), rows=[1], k=3).rows.tolist() == [[0, 2, 3]]


def test_a_row_given_as_a_query_finds_itself_first():
    features = Features(rows_of(100))
    found = search(features, query=features.x[:3], k=5)
    assert found.rows[:, 0].tolist() == [0, 1, 2]
    np.testing.assert_allclose(found.similarities[:, 0], 1, rtol=0, atol=1e-6)
    assert found.similarities.max() <= 1


def test_a_row_given_by_its_number_does_not_find_itself(block):
    x = rows_of(120)
    similarities, rows = by_scikit_learn(x, x, 6)
    found = search(x, rows=[5, 0, 119, 5], k=5)
    assert np.array_equal(found.rows, rows[[5, 0, 119, 5], 1:])
    np.testing.assert_allclose(found.similarities, similarities[[5, 0, 119, 5], 1:], rtol=0, atol=1e-6)
    assert np.array_equal(search(x, rows=5, k=5).rows, found.rows[:1])


def test_more_neighbours_than_rows_gives_all_rows():
    x = rows_of(8)
    assert search(x, rows_of(2, seed=1), k=100).rows.shape == (2, 8)
    assert np.sort(search(x, rows=3, k=100).rows).tolist() == [[0, 1, 2, 4, 5, 6, 7]]


def test_a_row_among_many_equal_ones_is_not_its_own_neighbour(block):
    x = np.repeat(rows_of(3), 40, axis=0)
    found = search(x, rows=np.arange(120), k=5)
    assert not (found.rows == np.arange(120)[:, None]).any()
    np.testing.assert_allclose(found.similarities, 1, rtol=0, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-30, 1e-10, 1e-3, 1e6, 1e15, 1e25])
def test_the_length_of_rows_does_not_matter(scale):
    x, queries = rows_of(100), rows_of(5, seed=1)
    expected = search(x, queries, k=7)
    lengths = np.random.default_rng(2).uniform(0.5, 2, (100, 1)).astype(np.float32)
    assert np.array_equal(
        search(x * lengths * np.float32(scale), queries * np.float32(scale), k=7).rows, expected.rows
    )


@pytest.mark.parametrize("suffix", [".npy", ".safetensors"])
def test_mapped_features_give_the_same_results(tmp_path, block, suffix):
    features = Features(np.concatenate([rows_of(90), rows_of(20)]))
    features.save(tmp_path / f"a{suffix}")
    mapped = Features.load(tmp_path / f"a{suffix}", mapped=True)
    assert np.array_equal(
        search(mapped, rows_of(4, seed=1), k=3).rows, search(features, rows_of(4, seed=1), k=3).rows
    )
    for one, other in zip(near_duplicates(mapped, 0.99), near_duplicates(features, 0.99), strict=True):
        assert np.array_equal(one, other)
    assert np.array_equal(outliers(mapped, 5).rows, outliers(features, 5).rows)


@pytest.mark.parametrize(
    ("query", "message"),
    [(np.zeros((0, 9)), r"shape \(0, 9\)"),
     (np.zeros((2, 8)), "8-dimensional .* 9-dimensional"),
     (np.zeros(9), r"shape \(9,\)"),
     (np.array([[0.0] * 8 + [np.nan]]), "1 of 1 feature rows hold NaN")],
)  # fmt: skip
def test_queries_that_cannot_be_compared_are_told(query, message):
    with pytest.raises(DataError, match=message):
        search(rows_of(5), query)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"rows": 0, "k": 2.5}, "k is 2.5; expected a whole number"),
     ({"rows": 0, "k": 0}, "k is 0; expected a whole number of at least 1"),
     ({}, "either query=.* or rows="),
     ({"rows": 1, "query": np.zeros((1, 9))}, "either query=.* or rows="),
     ({"rows": 5}, "no row 5: the features have 5 rows"),
     ({"rows": [0, -1]}, "no row -1"),
     ({"rows": []}, "whole numbers, at least one"),
     ({"rows": 1.5}, "whole numbers, at least one"),
     ({"rows": 0, "device": "gpu"}, "cpu, cuda")],
)  # fmt: skip
def test_searches_that_cannot_be_made_are_told(options, message):
    with pytest.raises(ConfigError, match=message):
        search(rows_of(5), **options)


def test_queries_without_a_direction_are_searched_and_told(caplog):
    x = rows_of(5)
    x[3] = 0
    assert (search(x, rows=[0, 3], k=2).similarities[1] == 0).all()
    assert (
        "1 of 2 queries are all zeros, the first is number 1: their similarity to everything is 0"
        in caplog.text
    )
    caplog.clear()
    search(x, np.zeros((2, 9)))
    assert "2 of 2 queries are all zeros, the first is number 0" in caplog.text
    caplog.clear()
    search(x, rows_of(2, seed=1))
    assert caplog.text == ""


def test_nan_in_the_features_is_told():
    x = rows_of(5)
    x[3, 1] = np.nan
    with pytest.raises(DataError, match=r"1 of 5 feature rows hold NaN or infinity \(the first is row 3\)"):
        search(x, rows_of(1))


def test_one_row_has_no_others():
    with pytest.raises(DataError, match="one feature row"):
        search(rows_of(1), rows=0)
    with pytest.raises(DataError, match="one feature row"):
        outliers(rows_of(1))


def test_the_bank_of_a_search_may_be_a_tensor_of_any_floating_type():
    x, queries = torch.from_numpy(rows_of(60)), torch.from_numpy(rows_of(4, seed=1))
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        cosines, rows = nearest(x.to(dtype), queries, 5)
        expected = nearest(x.to(dtype).float(), queries, 5)
        assert torch.equal(rows, expected[1])
        torch.testing.assert_close(cosines, expected[0])


# Near-duplicates


def linked(count: int, similarity: float, seed: int) -> tuple[np.ndarray, list[list[int]]]:
    """Rows of few dimensions, many alike, and their groups by SciPy."""
    x = rows_of(count, 3, seed)
    unit = x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
    number, component = connected_components(unit @ unit.T >= similarity)
    groups = [np.flatnonzero(component == c).tolist() for c in range(number)]
    return x, sorted((g for g in groups if len(g) > 1), key=lambda g: (-len(g), g[0]))


@pytest.mark.parametrize("similarity", [0.9, 0.99, 0.999])
@pytest.mark.parametrize("seed", range(3))
def test_near_duplicates_are_the_connected_components_of_scipy(block, similarity, seed):
    x, expected = linked(150, similarity, seed)
    assert [group.tolist() for group in near_duplicates(Features(x), similarity)] == expected
    assert expected


def test_copies_are_found_at_a_similarity_of_one(block):
    x = rows_of(60)
    x[[7, 50, 31]] = x[4], x[4] * 3, x[30]
    assert [group.tolist() for group in near_duplicates(x, 1.0)] == [[4, 7, 50], [30, 31]]


def test_a_chain_is_one_group_and_all_rows_may_be(block):
    angles = np.deg2rad(np.random.default_rng(0).permutation(90))
    x = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    (group,) = near_duplicates(x, np.cos(np.deg2rad(1.01)))
    assert group.tolist() == list(range(90))
    assert near_duplicates(x, np.cos(np.deg2rad(0.99))) == []
    (group,) = near_duplicates(np.ones((300, 2)), 0.97)
    assert group.tolist() == list(range(300))


@pytest.mark.parametrize("similarity", [0, -0.5, 1.01, float("nan")])
def test_similarities_without_a_meaning_are_refused(similarity):
    with pytest.raises(ConfigError, match="expected above 0 and at most 1"):
        near_duplicates(rows_of(5), similarity)


# Outliers


@pytest.mark.parametrize("k", [1, 10, 500])
def test_outliers_are_farthest_from_their_neighbours_by_scikit_learn(block, k):
    x = rows_of(120)
    near = min(k, 119)
    mean = (1 - by_scikit_learn(x, x, near + 1)[0][:, 1:]).mean(axis=1)
    found = outliers(Features(x), 6, k=k)
    assert found.rows.tolist() == np.argsort(-mean)[:6].tolist()
    np.testing.assert_allclose(found.distances, np.sort(mean)[::-1][:6], rtol=0, atol=1e-6)


def test_what_is_unlike_everything_is_the_first_outlier():
    x = rows_of(1, 16) + 0.1 * rows_of(200, 16, seed=1)
    x[77] *= -1
    assert outliers(x, 1).rows.tolist() == [77]


def test_more_outliers_than_rows_gives_all_rows():
    assert np.sort(outliers(rows_of(5), 99).rows).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("options", [{"count": 0}, {"k": 0}])
def test_outliers_need_numbers_of_at_least_one(options):
    with pytest.raises(ConfigError, match="is 0; expected a whole number of at least 1"):
        outliers(rows_of(5), **options)

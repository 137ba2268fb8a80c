import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors

from byol.errors import ConfigError, DataError
from byol.evaluation.knn import knn_predict, knn_predictions


def clusters(
    count: int, classes: int, seed: int = 0, width: int = 12, spread: float = 2.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Overlapping clouds of features (N, D), and the class of each."""
    centres = np.random.default_rng(99).normal(size=(classes, width))
    generator = np.random.default_rng(seed)
    y = generator.integers(0, classes, count)
    x = centres[y] + spread * generator.normal(size=(count, width))
    return torch.from_numpy(x).float(), torch.from_numpy(y)


def votes_of_scikit_learn(bank, labels, queries, k: int, temperature: float) -> torch.Tensor:
    def weights(distances):
        return np.exp((1 - distances) / temperature)

    model = KNeighborsClassifier(min(k, len(bank)), metric="cosine", algorithm="brute", weights=weights)
    model.fit(bank.double().numpy(), labels.numpy())
    return torch.from_numpy(model.predict(queries.double().numpy()))


@pytest.mark.parametrize("k", [1, 3, 20, 200, 400, 5000])
@pytest.mark.parametrize("temperature", [0.01, 0.07, 1.0])
def test_votes_are_those_of_scikit_learn(k, temperature):
    bank, labels = clusters(400, 7)
    queries, _ = clusters(300, 7, seed=1)
    expected = votes_of_scikit_learn(bank, labels, queries, k, temperature)
    assert torch.equal(knn_predict(bank, labels, queries, k=k, temperature=temperature), expected)
    assert len(expected.unique()) > 1


def test_defaults_are_twenty_votes_at_temperature_0_07():
    bank, labels = clusters(400, 7)
    queries, _ = clusters(300, 7, seed=1)
    assert torch.equal(
        knn_predict(bank, labels, queries), votes_of_scikit_learn(bank, labels, queries, 20, 0.07)
    )


def test_weights_decide_and_not_the_mere_number_of_votes():
    bank = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.6, 0.8]])
    labels, query = torch.tensor([1, 0, 0]), torch.tensor([[1.0, 0.0]])
    assert knn_predict(bank, labels, query, k=3, temperature=0.07).tolist() == [1]
    assert knn_predict(bank, labels, query, k=3, temperature=10.0).tolist() == [0]


def test_more_neighbours_than_rows_lets_every_row_vote():
    bank, labels = clusters(9, 3)
    queries, _ = clusters(50, 3, seed=1)
    every = knn_predict(bank, labels, queries, k=9)
    assert torch.equal(knn_predict(bank, labels, queries, k=200), every)


def test_blocks_give_the_same_votes():
    """20,000 classes are voted for in blocks of less than 900 queries, with the votes of one by one."""
    bank = torch.randn(20_000, 6, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(20_000)
    queries = torch.randn(2_000, 6, generator=torch.Generator().manual_seed(2))
    [whole] = knn_predictions(bank, labels, queries, (5,), 0.07)
    [part] = knn_predictions(bank, labels, queries[800:900], (5,), 0.07)
    assert torch.equal(part, whole[800:900])
    nearest = NearestNeighbors(n_neighbors=5, metric="cosine", algorithm="brute").fit(bank.double().numpy())
    rows = nearest.kneighbors(queries[::100].double().numpy(), return_distance=False)
    assert np.array_equal(whole[::100], rows)  # a class for each row: the nearest has the largest vote


@pytest.mark.parametrize("k", [1, 3, 20])
def test_the_first_five_classes_are_those_of_scikit_learn_and_no_other_class_is_predicted(k):
    bank, labels = clusters(400, 30)
    queries, _ = clusters(100, 30, seed=1)
    [found] = knn_predictions(bank, labels, queries, (k,), 0.07)
    model = KNeighborsClassifier(
        k, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / 0.07)
    )
    votes = model.fit(bank.double().numpy(), labels.numpy()).predict_proba(queries.double().numpy())
    expected = np.argsort(-votes, axis=1, kind="stable")[:, :5]
    expected[np.take_along_axis(votes, expected, axis=1) == 0] = -1
    assert np.array_equal(found.numpy(), expected)
    assert (found[:, 0] >= 0).all()


def test_several_k_predict_together_what_each_predicts_alone():
    generator = torch.Generator().manual_seed(0)
    bank, queries = torch.randn(200, 5, generator=generator), torch.randn(100, 5, generator=generator)
    labels = torch.arange(200) % 7
    together = knn_predictions(bank, labels, queries, (1, 9, 60), 0.5)
    for k, found in zip((1, 9, 60), together, strict=True):
        assert torch.equal(found, knn_predictions(bank, labels, queries, (k,), 0.5)[0])
    assert not any(torch.equal(together[2][:, 0], found[:, 0]) for found in together[:2])


def test_one_class_in_the_bank_is_every_prediction():
    bank, _ = clusters(30, 3)
    queries, _ = clusters(20, 3, seed=1)
    assert knn_predict(bank, torch.full((30,), 4), queries).tolist() == [4] * 20


def test_classes_missing_from_the_queries_can_still_be_predicted():
    bank, labels = clusters(400, 7)
    queries, y = clusters(300, 7, seed=1)
    some = queries[y < 2]
    assert torch.equal(knn_predict(bank, labels, some), knn_predict(bank, labels, queries)[y < 2])
    assert (knn_predict(bank, labels, some) >= 2).any()


@pytest.mark.parametrize("temperature", [1e-3, 1e-6, 1e-30])
def test_at_a_tiny_temperature_the_nearest_row_alone_decides(temperature):
    """Also where it is far away: the weights exp(cosine / temperature) would overflow, or all vanish."""
    bank, labels = clusters(400, 7, width=64)
    queries, _ = clusters(300, 7, seed=1, width=64)
    nearest = knn_predict(bank, labels, queries, k=1)
    agree = knn_predict(bank, labels, queries, temperature=temperature) == nearest
    assert agree.float().mean() > 0.97  # at 1e-3 near ties still share their votes
    far = torch.tensor([[-1.0, 0.1]])
    assert knn_predict(torch.eye(2), torch.tensor([0, 5]), far, k=2, temperature=temperature).tolist() == [5]


@pytest.mark.parametrize("scale", [1e-10, 1e-3, 1e6, 1e15])
def test_the_scale_of_features_does_not_matter(scale):
    bank, labels = clusters(400, 7)
    queries, _ = clusters(300, 7, seed=1)
    expected = knn_predict(bank, labels, queries)
    assert torch.equal(knn_predict(bank * scale, labels, queries), expected)
    assert torch.equal(knn_predict(bank, labels, queries * scale), expected)


def test_a_row_of_zeros_is_similar_to_nothing_and_harms_nothing():
    bank, labels = clusters(400, 7)
    queries, _ = clusters(300, 7, seed=1)
    expected = knn_predict(bank, labels, queries)
    with_zero = knn_predict(
        torch.cat([bank, torch.zeros(1, 12)]), torch.cat([labels, torch.tensor([0])]), queries
    )
    assert torch.equal(with_zero, expected)
    assert knn_predict(bank, labels, torch.zeros(1, 12)).shape == (1,)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_features_of_any_floating_type_are_compared_in_float32(dtype):
    bank, labels = clusters(400, 7)
    queries, _ = clusters(300, 7, seed=1)
    bank, queries = bank.to(dtype), queries.to(dtype)
    assert torch.equal(knn_predict(bank, labels, queries), knn_predict(bank.float(), labels, queries.float()))


def test_no_query_gives_no_prediction():
    bank, labels = clusters(10, 3)
    found = knn_predict(bank, labels, bank[:0])
    assert found.shape == (0,)
    assert found.dtype == torch.int64


@pytest.mark.parametrize(
    "options", [{"k": 0}, {"k": -1}, {"k": 2.5}, {"temperature": 0.0}, {"temperature": -0.07}]
)
def test_refuses_settings_that_cannot_vote(options):
    bank, labels = clusters(10, 3)
    with pytest.raises(ConfigError, match="expected a whole k of at least 1 and a positive temperature"):
        knn_predict(bank, labels, bank, **options)


def test_refuses_a_bank_without_rows_or_without_a_label_for_each():
    bank, labels = clusters(10, 3)
    with pytest.raises(DataError, match=r"rows \(0, 12\), labels \(0,\)"):
        knn_predict(bank[:0], labels[:0], bank)
    with pytest.raises(DataError, match=r"rows \(10, 12\), labels \(9,\)"):
        knn_predict(bank, labels[:9], bank)
    with pytest.raises(DataError, match=r"\(10, 2\)"):
        knn_predict(bank, torch.ones(10, 2, dtype=torch.int64), bank)

"""Where LAPACK gives up in float32, which hangs on the CPU: here it gives up on everything."""

import pytest
import torch

from byol.method.health import health
from byol.method.linalg import decomposed
from byol.models.whitening import HalfWhitening


@pytest.fixture
def rows():
    """Of low rank, with dead features."""
    rows = torch.randn(60, 3, generator=torch.Generator().manual_seed(0)) @ torch.randn(3, 20)
    rows[:, 12:] = 0
    return rows


def gives_up(function):
    def tried(matrix, **options):
        if matrix.dtype == torch.float32:
            raise torch.linalg.LinAlgError("linalg.eigh: The algorithm failed to converge")
        return function(matrix, **options)

    return tried


@pytest.mark.parametrize("name", ["eigh", "svd", "svdvals"])
def test_it_is_computed_in_float64_and_given_in_float32(rows, name):
    function, matrix = getattr(torch.linalg, name), rows.T @ rows
    found, expected = decomposed(gives_up(function), matrix), function(matrix.double())
    for one, other in zip(*((x,) if name == "svdvals" else x for x in (found, expected)), strict=True):
        assert torch.equal(one, other.float())


@pytest.mark.parametrize("count", [5, 60])  # less than half as many as features, and more
def test_whitening_and_signs_of_health_are_as_usual(rows, count, monkeypatch):
    rows = rows[:count]
    whitened, signs = HalfWhitening.of(rows)(rows), health(rows)
    for name in ("eigh", "svd", "svdvals"):
        monkeypatch.setattr(torch.linalg, name, gives_up(getattr(torch.linalg, name)))
    torch.testing.assert_close(HalfWhitening.of(rows)(rows), whitened, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(health(rows), signs, atol=1e-4, rtol=1e-4)


def test_what_is_not_finite_is_no_result():
    with pytest.raises(torch.linalg.LinAlgError):
        decomposed(torch.linalg.eigh, torch.full((4, 4), torch.nan))

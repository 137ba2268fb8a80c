"""The layer behind the small encoder, compared with scikit-learn's PCA."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from byol.models.convnet import ConvNet
from byol.models.whitening import RIDGE, HalfWhitening


@pytest.fixture
def rows() -> torch.Tensor:
    """Features with a few large axes, as an encoder's are, off the origin."""
    generator = np.random.default_rng(0)
    return torch.from_numpy(generator.normal(size=(400, 12)) * 3.0 ** -np.arange(12) + 5).float()


def test_each_principal_axis_is_divided_by_the_root_of_its_standard_deviation(rows):
    pca = PCA().fit(rows.double().numpy())
    variances = pca.explained_variance_ / pca.explained_variance_.mean()
    expected = pca.transform(rows.double().numpy()) * (variances + RIDGE) ** -0.25 @ pca.components_
    np.testing.assert_allclose(HalfWhitening.of(rows)(rows).numpy(), expected, atol=2e-5)


def test_it_changes_nothing_until_it_is_fitted(rows):
    assert torch.equal(HalfWhitening(12)(rows), rows)


@pytest.mark.parametrize("few", [0, 1])
def test_too_few_rows_change_nothing(rows, few):
    assert torch.equal(HalfWhitening.of(rows[:few])(rows), rows)


def test_equal_rows_change_nothing(rows):
    assert torch.equal(HalfWhitening.of(rows[:1].repeat(5, 1))(rows), rows)


def test_along_axes_of_which_few_rows_tell_nothing_features_stay_as_they_are(rows):
    pca = PCA().fit(rows[:5].double().numpy())
    variances = pca.explained_variance_ / (pca.explained_variance_.sum() / 12)
    centred = rows.double().numpy() - pca.mean_
    more = (centred @ pca.components_.T) * ((variances + RIDGE) ** -0.25 - 1) @ pca.components_
    np.testing.assert_allclose(HalfWhitening.of(rows[:5])(rows).numpy(), centred + more, atol=2e-5)


def test_fewer_rows_than_features_leave_finite_features_of_their_size(rows):
    whitened = HalfWhitening.of(rows[:5])(rows)
    assert whitened.isfinite().all()
    spread = rows.std(dim=0).norm() / whitened.std(dim=0).norm()
    assert 0.2 < spread < 5


def test_a_convnet_whose_file_knows_of_no_whitening_is_as_it_was(rows):
    plain, whitening = ConvNet(width=2), ConvNet(width=2, whiten=True)
    assert {*plain.state_dict()} == {*whitening.state_dict()} - {"whitening.mean", "whitening.matrix"}
    whitening.load_state_dict(plain.state_dict(), strict=False)
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(plain.eval()(images), whitening.eval()(images))

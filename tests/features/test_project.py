"""Maps: PCA and the share of neighbours that is kept by someone else's answer, t-SNE by what it is for."""

import numpy as np
import pytest

from byol.features.neighbours import search
from byol.features.project import pca, share_kept, tsne


def crowds(count=300, width=20):
    """Features in ten crowds, (N, D)."""
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(10, width))
    return (centres[np.arange(count) % 10] + 0.3 * generator.normal(size=(count, width))).astype(np.float32)


def test_pca_is_that_of_the_rows_of_length_1():
    x = crowds()
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    centred = (unit - unit.mean(axis=0)).astype(np.float64)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    wanted, points = centred @ directions[:2].T, pca(x)
    for axis in (0, 1):
        sign = np.sign(wanted[:, axis] @ points[:, axis])
        assert points[:, axis] * sign == pytest.approx(wanted[:, axis], abs=1e-5)


def test_features_of_one_number_have_a_map_too():
    points = pca(np.array([[1.0], [-2.0], [3.0]], dtype=np.float32))
    assert points.shape == (3, 2)
    assert np.isfinite(points).all()


def test_the_share_kept_is_counted():
    x = crowds()
    points, rows = pca(x), np.array([3, 50, 299])
    near = search(x, rows=rows, k=7).rows
    kept = 0
    for row, those in zip(rows, near, strict=True):
        far = np.linalg.norm(points - points[row], axis=1)
        far[row] = np.inf
        kept += len({*np.argsort(far)[:7].tolist()} & {*those.tolist()})
    assert share_kept(points, near, rows) == pytest.approx(kept / 21)


def test_all_is_kept_of_what_is_flat():
    angles = np.linspace(0, np.pi / 2, 200)
    x = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    rows = np.arange(200)
    assert share_kept(pca(x), search(x, rows=rows, k=1).rows, rows) > 0.45  # of two equal ones either


def test_tsne_keeps_more_neighbours_than_pca():
    pytest.importorskip("openTSNE", reason="an extra: pip install 'byol[map]'")
    x, rows = crowds(), np.arange(300)
    near, start = search(x, rows=rows, k=30), pca(x)
    told = []
    points = tsne(near, start, progress=lambda done, total: told.append((done, total)))
    judged = near.rows[:, :10]
    assert share_kept(points, judged, rows) > 1.5 * share_kept(start, judged, rows)
    assert told[-1] == (750, 750)
    assert told == sorted(told)

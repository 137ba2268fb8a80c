"""The encoder inside scikit-learn."""

import pickle
import subprocess
import sys

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

import byol
from byol.data.images import open_images
from byol.encoders.encoder import save_encoder
from byol.errors import CheckpointError, ConfigError, DataError
from byol.features.embed import embed
from byol.features.embedder import Embedder


@pytest.fixture(scope="module")
def coloured() -> tuple[np.ndarray, np.ndarray]:
    """Sixty noisy pictures (N, 16, 16, 3), each red, green or blue, and which."""
    generator = np.random.default_rng(0)
    y = generator.integers(0, 3, 60)
    images = generator.integers(0, 100, (60, 16, 16, 3))
    images[np.arange(60), :, :, y] += 100
    return images.astype(np.uint8), y


def test_it_gives_what_embed_gives(encoder_of, coloured):
    encoder, (images, _) = encoder_of("convnet", width=4), coloured
    for normalize in (False, True):
        expected = embed(encoder, images, normalize=normalize).x
        embedder = byol.Embedder(encoder, normalize=normalize)
        assert np.array_equal(embedder.transform(images), expected)
        assert np.array_equal(embedder.fit(images).transform(images), expected)
        assert np.array_equal(embedder.fit_transform(images), expected)


def test_a_pipeline_learns_and_predicts(encoder_of, coloured):
    images, y = coloured
    pipeline = make_pipeline(Embedder(encoder_of("convnet", width=4)), StandardScaler(), LogisticRegression())
    assert pipeline.fit(images[:40], y[:40]).score(images[40:], y[40:]) >= 0.9
    assert cross_val_score(pipeline, images, y, cv=3).min() > 0.8


def test_a_pipeline_takes_paths_and_settings_are_searched(encoder_of, coloured, tmp_path):
    from PIL import Image

    images, y = coloured
    paths = [str(tmp_path / f"{number}.png") for number in range(60)]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path)
    save_encoder(encoder_of("convnet", width=4), tmp_path)
    pipeline = Pipeline([("embed", Embedder(tmp_path)), ("classify", LogisticRegression())])
    grid = GridSearchCV(
        pipeline, {"embed__normalize": [False, True], "classify__C": [1.0, 10.0]}, cv=2, error_score="raise"
    )
    assert grid.fit(paths, y).best_score_ > 0.9
    assert grid.fit(np.array(paths), y).best_score_ > 0.9


def test_it_is_cloned_pickled_and_named_as_scikit_learn_does(encoder_of, coloured, tmp_path):
    save_encoder(encoder_of("convnet", width=4), tmp_path)
    embedder = Embedder(str(tmp_path), workers=0, normalize=True)
    assert clone(embedder).get_params() == {"encoder": str(tmp_path), "workers": 0, "normalize": True}
    fitted = embedder.fit(coloured[0])
    again = pickle.loads(pickle.dumps(fitted))
    assert np.array_equal(again.transform(coloured[0]), fitted.transform(coloured[0]))
    assert fitted.get_feature_names_out()[:2].tolist() == ["embedder0", "embedder1"]
    assert len(fitted.get_feature_names_out()) == fitted.transform(coloured[0][:2]).shape[1]
    assert np.array_equal(
        clone(Embedder(encoder_of("convnet", width=4))).transform(coloured[0][:3]).shape, (3, 144)
    )


def test_unreadable_images_are_an_error_and_not_a_missing_row(encoder_of, tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    byol_images = open_images([np.zeros((16, 16, 3), dtype=np.uint8), tmp_path / "a.png"])
    with pytest.raises(
        DataError, match=r"1 of 2 images cannot be read: 1 \(the file is empty\)\. Every one is needed here"
    ):
        Embedder(encoder_of("convnet")).transform(byol_images)


def test_what_is_not_an_encoder_is_told_when_it_is_fitted(coloured, tmp_path):
    with pytest.raises(ConfigError, match="load_encoder"):
        Embedder(len).fit(coloured[0])
    with pytest.raises(CheckpointError, match="no encoder at"):
        Embedder(tmp_path / "nothing").fit(coloured[0])


def test_the_name_is_there_without_scikit_learn_and_a_sentence_tells_when_it_is_used():
    """`from byol import *` and hasattr ask for the name alone."""
    code = """
import sys
sys.modules["sklearn"] = None  # as if it were not installed
from byol import *
import byol
assert hasattr(byol, "Embedder")
try:
    Embedder("runs/a")
except ConfigError as failure:
    print(failure)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert "scikit-learn" in done.stdout, done.stderr
    assert "pip install" in done.stdout

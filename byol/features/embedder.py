"""An encoder as a scikit-learn transformer: images in, features out, at the head of a Pipeline."""

from pathlib import Path
from typing import Any

from byol.encoders.encoder import Encoder
from byol.encoders.load import load_encoder
from byol.errors import ConfigError
from byol.features.embed import check_encoder, embed
from byol.features.features import Values

try:
    from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin

    _BASES: Any = (ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator)
except ImportError:  # told when it is used: the name alone, as in `from byol import *`, needs nothing
    _BASES = ()


class Embedder(*_BASES):  # type: ignore[misc]
    """Images, anything `open_images` takes, to features (N, D) float32.

    `encoder` is what `load_encoder` gives, or the path of a run or encoder file, which is read when first
    needed. There is nothing to fit. An image that cannot be read raises DataError: rows and labels must go
    on matching.
    """

    def __init__(self, encoder: Encoder | str | Path, *, workers: int = 0, normalize: bool = False) -> None:
        if not _BASES:
            raise ConfigError("byol.Embedder needs scikit-learn. Run: pip install 'byol[search]'")
        self.encoder = encoder
        self.workers = workers
        self.normalize = normalize

    def fit(self, X: Any, y: Any = None) -> "Embedder":
        """Read the encoder. Raises ConfigError or CheckpointError when it cannot be used."""
        self._encoder = load_encoder(self.encoder) if isinstance(self.encoder, str | Path) else self.encoder
        check_encoder(self._encoder)
        self._n_features_out = self._encoder.info.features
        return self

    def transform(self, X: Any) -> Values:
        """The representation of every image: (N, D)."""
        fitted = self if hasattr(self, "_encoder") else Embedder(self.encoder).fit(X)
        return embed(fitted._encoder, X, workers=self.workers, normalize=self.normalize, strict=True).x

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.requires_fit = False
        return tags

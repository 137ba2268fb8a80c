"""Does another tool compute from an export what the encoder computes?"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from byol.encoders.encoder import Encoder
from byol.errors import CheckpointError
from byol.method.crops import Size
from byol.method.pixels import normalise_

TOLERANCE = 1e-4  # of the largest feature
BATCHES = (1, 2, 5)


@dataclass(frozen=True)
class Check:
    """How near another tool comes to an encoder."""

    tool: str  # that loaded the export
    difference: float  # of a feature at most, as a share of the largest feature; infinity for another shape
    sizes: tuple[Size, ...]  # of the images compared; a graph with two of them takes images of any size
    what: str = "features"  # or a classifier's probabilities

    @property
    def agrees(self) -> bool:
        """Whether the difference is one of rounding."""
        return self.difference <= TOLERANCE

    def __str__(self) -> str:
        if math.isinf(self.difference):
            return f"{self.what} of another shape"
        return (
            f"{self.what} that differ by up to {self.difference:.1e} of the largest (allowed: {TOLERANCE:g})"
        )


@torch.no_grad()
def compared(
    encoder: Encoder,
    tool: str,
    run: Callable[[Tensor], Tensor],  # normalised float32 (B, C, H, W) to features
    sizes: Sequence[Size] = (),  # by default the encoder's own
    *,
    normalised: bool = True,  # else `run` normalises pixels in [0, 1] itself
    of_features: Callable[[Tensor], Tensor] | None = None,  # a classifier: then it is about probabilities
) -> Check:
    """How near another tool's features come to the encoder's, in batches of 1, 2 and 5 images of each size.

    Raises CheckpointError when the encoder's own features are not finite.
    """
    what = "features" if of_features is None else "probabilities"
    info, differences, sizes = encoder.info, [0.0], tuple(sizes) or (encoder.info.image_size,)
    noise = torch.Generator().manual_seed(0)
    for size in sizes:
        for batch in BATCHES:
            images = torch.rand((batch, info.channels, *size), generator=noise)
            x = normalise_(images.clone(), info.mean, info.std)
            expected = encoder.network(x).float()
            if not expected.isfinite().all():
                raise CheckpointError("The encoder's features are not finite: its weights are damaged.")
            expected = expected if of_features is None else of_features(expected)
            features = run(x if normalised else images)
            if features.shape != expected.shape:
                return Check(tool, math.inf, sizes, what)
            scale = expected.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
            differences.append(float((features - expected).abs().max() / scale))
    # NaN stays NaN: within no tolerance.
    return Check(tool, float(torch.tensor(differences).max()), sizes, what)

"""Does another tool compute from an export what the encoder computes?"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from byol.encoders.encoder import Encoder
from byol.errors import CheckpointError
from byol.method.pixels import normalise_

TOLERANCE = 1e-4  # of the largest feature
BATCHES = (1, 2, 5)
Size = tuple[int, int]  # height, width


@dataclass(frozen=True)
class Check:
    """How near another tool comes to an encoder."""

    tool: str  # that loaded the export
    difference: float  # of a feature at most, as a share of the largest feature; infinity for another shape
    sizes: tuple[Size, ...]  # of the images compared; a graph with two of them takes images of any size

    @property
    def agrees(self) -> bool:
        """Whether the difference is one of rounding."""
        return self.difference <= TOLERANCE

    def __str__(self) -> str:
        if math.isinf(self.difference):
            return "features of another shape"
        return f"features that differ by up to {self.difference:.1e} of the largest (allowed: {TOLERANCE:g})"


@torch.no_grad()
def compared(
    encoder: Encoder,
    tool: str,
    run: Callable[[Tensor], Tensor],  # normalised float32 (B, C, H, W) to features
    sizes: Sequence[Size] = (),  # by default the encoder's own
    *,
    normalised: bool = True,  # else `run` normalises pixels in [0, 1] itself
) -> Check:
    """How near another tool's features come to the encoder's, in batches of 1, 2 and 5 images of each size.

    Raises CheckpointError when the encoder's own features are not finite.
    """
    info, differences, sizes = encoder.info, [0.0], tuple(sizes) or (encoder.info.image_size,)
    noise = torch.Generator().manual_seed(0)
    for size in sizes:
        for batch in BATCHES:
            images = torch.rand((batch, info.channels, *size), generator=noise)
            x = normalise_(images.clone(), info.mean, info.std)
            expected = encoder.network(x).float()
            if not expected.isfinite().all():
                raise CheckpointError("The encoder's features are not finite: its weights are damaged.")
            features = run(x if normalised else images)
            if features.shape != expected.shape:
                return Check(tool, math.inf, sizes)
            scale = expected.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
            differences.append(float((features - expected).abs().max() / scale))
    return Check(tool, float(torch.tensor(differences).max()), sizes)  # NaN stays NaN: within no tolerance

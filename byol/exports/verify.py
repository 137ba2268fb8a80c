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
    difference: float  # largest deviation of a feature, as a share of the largest feature
    sizes: tuple[Size, ...]  # of the images compared; a graph with two of them takes images of any size


@torch.no_grad()
def allowed_sizes(encoder: Encoder) -> tuple[Size, ...]:
    """The encoder's image size, and another one if its network takes one with the same number of features."""
    height, width = encoder.info.image_size
    # Odd at every stride first: rounding is where tools differ. ViTs need multiples of their patch.
    for other in ((height + 33, width + 54), (height + 32, width + 64), (2 * height, 2 * width)):
        try:
            features = encoder.network(torch.rand(1, encoder.info.channels, *other))
        except Exception:
            continue
        if features.shape == (1, encoder.info.features):
            return (height, width), other
    return ((height, width),)


@torch.no_grad()
def difference(
    encoder: Encoder, answer: Callable[[Tensor], Tensor], sizes: Sequence[Size], *, normalised: bool = True
) -> float:
    """The largest deviation of another tool's features, as a share of the encoder's largest feature.

    `answer` takes float32 (B, C, H, W), normalised unless it normalises pixels in [0, 1] itself, and is asked for batches
    of 1, 2 and 5 images at every size. Infinity when it gives another shape. Raises CheckpointError when the encoder's own
    features are not finite.
    """
    info = encoder.info
    noise = torch.Generator().manual_seed(0)
    found = []
    for size in sizes:
        for batch in BATCHES:
            images = torch.rand((batch, info.channels, *size), generator=noise)
            x = normalise_(images.clone(), info.mean, info.std)
            expected = encoder.network(x).float()
            if not expected.isfinite().all():
                raise CheckpointError(
                    "The encoder's features are not finite: its weights are damaged or diverged. Take another checkpoint."
                )
            given = answer(x if normalised else images)
            if given.shape != expected.shape:
                return math.inf
            scale = expected.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
            found.append((given - expected).abs().max() / scale)
    return float(torch.stack(found).max())  # NaN stays NaN, and is within no tolerance


def agrees(found: float) -> bool:
    """Whether a difference is one of rounding."""
    return found <= TOLERANCE


def in_words(found: float) -> str:
    """A difference for people."""
    if math.isinf(found):
        return "features of another shape"
    return f"features that differ by up to {found:.1e} of the largest ({TOLERANCE:g} is allowed)"

"""What an encoder is compared with: raw pixels, and the same network untrained or trained on labels alone."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from byol.encoders.encoder import Encoder
from byol.encoders.load import untrained
from byol.evaluation.protocols import Protocol
from byol.method.hidden import HiddenLayer

SIDE = 32  # pixels: larger images are shrunk, else their pixels would be too many features


@dataclass(frozen=True)
class Baseline:
    """An encoder made for comparison with another one."""

    make: Callable[..., Encoder]  # of an encoder and a seed; net names code of the user's own
    takes: Callable[[Protocol], bool]  # which protocols it is scored by
    anew: bool = False  # whether each seed has fresh weights of its own


def pixels(encoder: Encoder, seed: int, net: str | None = None) -> Encoder:
    """The pixels that the encoder is fed, normalised as for it; shrunk to a side of 32 at most."""
    info = encoder.info
    height, width = (min(SIDE, side) for side in info.image_size)
    size: dict[str, Any] = {
        "image_size": (height, width),
        "features": math.prod((info.channels, height, width)),
    }
    plain: dict[str, Any] = {"hidden_layer": None, "pooling": "none", "skip": 0, "calls": 1}
    expected = replace(info, architecture=None, options={}, **size, **plain)
    return Encoder(HiddenLayer(nn.Flatten()), expected).eval()


def fresh(encoder: Encoder, seed: int, net: str | None = None) -> Encoder:
    """The same network with fresh weights that follow from the seed; see `untrained`."""
    return untrained(encoder, seed=seed, net=net)


BASELINES = {
    "pixels": Baseline(pixels, lambda protocol: not protocol.on_images),
    "untrained": Baseline(fresh, lambda protocol: not protocol.tunes),
    # From scratch on the same labels, with the same budget.
    "supervised": Baseline(fresh, lambda protocol: protocol.tunes, anew=True),
}

"""What an encoder is compared with: raw pixels, and the same network untrained or trained on labels alone."""

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

    make: Callable[..., Encoder]  # of an encoder, with `seed` and, for code of the user's own, its name `net`
    takes: Callable[[Protocol], bool]  # which protocols it is scored by
    anew: bool = False  # whether each seed has fresh weights of its own


def pixels(encoder: Encoder, *, seed: int = 0, net: str | None = None) -> Encoder:
    """The pixels that the encoder is fed, normalised as for it; shrunk to a side of 32 at most."""
    info = encoder.info
    height, width = (min(SIDE, side) for side in info.image_size)
    plain: dict[str, Any] = {"architecture": None, "options": {}, "hidden_layer": None, "pooling": "none"}
    size: dict[str, Any] = {"image_size": (height, width), "features": info.channels * height * width}
    return Encoder(HiddenLayer(nn.Flatten()), replace(info, skip=0, calls=1, **plain, **size)).eval()


BASELINES = {
    "pixels": Baseline(pixels, lambda protocol: not protocol.on_images),
    "untrained": Baseline(untrained, lambda protocol: not protocol.tunes),
    # From scratch on the same labels, with the same budget.
    "supervised": Baseline(untrained, lambda protocol: protocol.tunes, anew=True),
}

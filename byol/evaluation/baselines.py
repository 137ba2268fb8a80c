"""What an encoder is compared with: the raw pixels, and the same network without training."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from byol.errors import ConfigError
from byol.evaluation.protocols import protocol_named
from byol.features.extract import device_of
from byol.method.draws import seed_of
from byol.method.hidden import HiddenLayer
from byol.models.build import build_encoder
from byol.weights.files import Encoder

SIDE = 32  # pixels: larger images are shrunk, else their pixels would be too many features


@dataclass(frozen=True)
class Baseline:
    """An encoder made for comparison with another one."""

    make: Callable[[Encoder, int, str | None], Encoder]  # encoder, seed, name of code of the user's own
    trainable: bool = True  # whether protocols that work on images, and may train the encoder, can be asked
    protocols: tuple[str, ...] | None = None  # the only ones it is scored by; None: those that were asked for

    def scored_by(self, asked: Sequence[str]) -> tuple[str, ...]:
        """The protocols that this baseline is scored by."""
        if self.protocols is not None:
            return self.protocols
        return tuple(name for name in asked if self.trainable or not protocol_named(name).on_images)


def pixels(encoder: Encoder, seed: int, net: str | None) -> Encoder:
    """The pixels that the encoder is fed, normalised as for it, as features; shrunk to a side of 32 at most."""
    info = encoder.info
    height, width = (min(SIDE, side) for side in info.image_size)
    features = math.prod((info.channels, height, width))
    expected = replace(info, encoder=None, options={}, image_size=(height, width), features=features, hidden_layer=None,
                       pooling="none", skip=0, calls=1)  # fmt: skip
    return Encoder(HiddenLayer(nn.Flatten(), None, "none", 0, 1), expected).eval()


def untrained(encoder: Encoder, seed: int, net: str | None) -> Encoder:
    """The same network with fresh weights that follow from the seed. Raises ConfigError for code of your own, unless named."""
    info = encoder.info
    name = net or info.encoder
    if name is None or (net is None and ":" in name and not name.startswith(("torchvision:", "timm:"))):
        raise ConfigError(
            "The baseline untrained needs a new network, and this one is code of your own: add --encoder package.module:NAME."
        )
    with torch.random.fork_rng([]):
        torch.manual_seed(seed_of(seed, 0))
        fresh = build_encoder(name, channels=info.channels, image_size=info.image_size, **info.options)
    network = HiddenLayer(fresh, info.hidden_layer, info.pooling, info.skip, info.calls)
    return Encoder(network, info).to(device_of(encoder)).to(memory_format=torch.channels_last).eval()


BASELINES = {"pixels": Baseline(pixels, trainable=False), "untrained": Baseline(untrained)}

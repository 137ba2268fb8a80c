from collections.abc import Callable

import pytest
import torch
from torch import nn

from byol.method.hidden import probe
from byol.method.views import ViewConfig, normalisation
from byol.models.build import build_encoder
from byol.weights.files import Encoder, EncoderInfo


@pytest.fixture
def encoder_of() -> Callable[..., Encoder]:
    """An encoder ready to use, of a network or a name: encoder_of("convnet", width=4), encoder_of(net, "layer4")."""

    def make(
        net: nn.Module | str = "convnet",
        hidden_layer: str | None = None,
        *,
        size: tuple[int, int] = (16, 16),
        channels: int = 3,
        **options: object,
    ) -> Encoder:
        name = net if isinstance(net, str) else None
        if isinstance(net, str):
            torch.manual_seed(0)
            options = options or ({"width": 4} if net == "convnet" else {})
            net = build_encoder(net, channels=channels, image_size=size, **options)
        found = probe(net, hidden_layer, torch.rand((2, channels, *size), generator=torch.Generator().manual_seed(0)))
        mean, std = normalisation(ViewConfig(), channels)
        info = EncoderInfo.of(
            found.encoder, name, options, image_size=size, channels=channels, mean=mean, std=std, features=found.features
        )
        return Encoder(found.encoder, info).eval()

    return make

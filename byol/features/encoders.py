"""Any encoder to start from: a finished run, an encoder file."""

from pathlib import Path

from torch import nn

from byol.models.build import build_encoder
from byol.weights import files
from byol.weights.files import Encoder, EncoderInfo
from byol.world import pick_device


def load_encoder(path: str | Path, *, net: nn.Module | None = None, device: str | None = "cpu") -> Encoder:
    """An encoder from a run folder or an encoder.safetensors file, in eval mode.

    `net` is the network to fill when the run trained a module of your own, which no name can rebuild. Its forward takes
    (B, C, H, W) uint8, or float in [0, 1], of any size and gives the representation (B, D) float32. Raises
    CheckpointError when the file is missing, damaged or does not fit.
    """

    def build(info: EncoderInfo) -> nn.Module:
        if net is not None:
            return net
        return build_encoder(str(info.encoder), channels=info.channels, image_size=info.image_size, **info.options)

    return files.load_encoder(path, build=build, device=pick_device(device))

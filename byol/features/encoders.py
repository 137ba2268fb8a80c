"""Any encoder to start from: a finished run, an encoder file, an official checkpoint."""

from pathlib import Path

from torch import nn

from byol.errors import CheckpointError, ConfigError
from byol.features.conversion import convert, first_bytes
from byol.models.build import build_encoder
from byol.weights import files
from byol.weights.files import Encoder, EncoderInfo
from byol.weights.foreign import is_torch
from byol.weights.pickles import is_pickle
from byol.world import pick_device


def load_encoder(path: str | Path, *, net: nn.Module | str | None = None, device: str | None = "cpu") -> Encoder:
    """An encoder from a run folder, an encoder.safetensors file or an official checkpoint (.pkl), in eval mode.

    `net` is the network to fill, or its "package.module:function", when the run trained a module of your own: no file
    can make this program import code, only you can. The encoder's forward takes (B, C, H, W) uint8, or float in
    [0, 1], of any size and gives the representation (B, D) float32. Raises CheckpointError when the file is missing,
    damaged or does not fit, ConfigError when the network cannot be built.
    """
    file = files.find(Path(path))
    head = first_bytes(file)
    if is_torch(head):
        raise CheckpointError(f"{file} is a torch checkpoint. Make an encoder of it first: byol convert {file} --out FOLDER.")
    if is_pickle(head):
        if net is not None:
            raise ConfigError(f"{file} is an official checkpoint, which tells its network: leave net out.")
        return convert(file).encoder.to(pick_device(device))

    def build(info: EncoderInfo) -> nn.Module:
        if isinstance(net, nn.Module):
            return net
        name = net if net is not None else builtin(path, info)
        return build_encoder(name, channels=info.channels, image_size=info.image_size, **info.options)

    return files.load_encoder(path, build=build, device=pick_device(device))


def builtin(path: str | Path, info: EncoderInfo) -> str:
    """The name an encoder file gives, if building it runs no code but this package's, torchvision's or timm's."""
    library, colon, _ = (info.encoder or "").partition(":")
    if info.encoder is None or (colon and library not in ("torchvision", "timm")):
        what = "a module of your own" if info.encoder is None else f"{info.encoder!r}, code of your own"
        raise CheckpointError(
            f"The encoder in {path} is {what}, which is not built because a file says so. Build it yourself: "
            "load_encoder(path, net=...), or --encoder package.module:function."
        )
    return info.encoder

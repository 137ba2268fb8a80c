"""Any encoder to start from: a finished run, an encoder file, an official checkpoint."""

import os
from pathlib import Path

import torch
from torch import nn

from byol.encoders import encoder as files
from byol.encoders.convert import convert, first_bytes
from byol.encoders.encoder import Encoder, EncoderInfo, device_of
from byol.encoders.foreign import NPY, ZIP, is_torch
from byol.encoders.pickles import is_pickle
from byol.encoders.pretrained import pretrained_encoder
from byol.errors import ByolError, CheckpointError, ConfigError, complaint
from byol.method.draws import Stream, seed_of
from byol.method.hidden import OUTPUT, HiddenLayer
from byol.models.build import LIBRARIES, build_encoder, is_own_code
from byol.world import pick_device


class OwnNetwork(CheckpointError):
    """An encoder file of a network that only the user's own code can build."""


def load_encoder(
    path: str | Path,
    *,
    net: nn.Module | str | None = None,
    weights: str | Path | None = None,
    device: str | None = "cpu",
) -> Encoder:
    """An encoder from a run folder, an encoder.safetensors file or an official checkpoint (.pkl), in eval mode.

    Also "torchvision:NAME" or "timm:NAME" with pretrained weights: those in the file `weights`, or by default those that the
    library has downloaded before; see `pretrained_encoder`. `net` is the network to fill, or its "package.module:function",
    when the run trained a module of your own: no file can make this program import code, only you can. The encoder's
    forward takes (B, C, H, W) uint8, or float in [0, 1], of any size and gives the representation (B, D) float32.

    Raises CheckpointError when the file is missing, damaged, of a newer version or does not fit, and ConfigError when the
    network cannot be built or has no such hidden layer.
    """
    if not str(path):
        raise CheckpointError("The path of the encoder is empty; expected a run's folder or an encoder file.")
    if (name := str(path)).startswith(LIBRARIES):
        if net is not None:
            raise ConfigError(f"{name} names its network: leave net (--encoder) out.")
        return pretrained_encoder(name, weights=weights, device=device)
    if weights is not None:
        raise ConfigError(
            f"{weights} was given as weights of {path}; they go with torchvision:NAME or timm:NAME."
        )
    file = files.find(Path(path))
    head = first_bytes(file)
    if file.suffix == ".json" or (head.startswith((NPY, ZIP)) and not is_torch(head)):
        what = "a description" if file.suffix == ".json" else "an array of numpy's"
        raise CheckpointError(
            f"{file} is {what}; expected a run's folder, an encoder.safetensors file or an official .pkl."
        )
    if is_torch(head):
        raise CheckpointError(
            f"{file} is a torch checkpoint. Make an encoder of it first: byol convert {file} --out FOLDER."
        )
    if is_pickle(head):
        if net is not None:
            raise ConfigError(f"{file} is an official checkpoint, which tells its network: leave net out.")
        return convert(file).encoder.to(pick_device(device))

    tensors, info = files.read(file)
    if not isinstance(net, nn.Module):
        name = net if net is not None else builtin(path, info)
        try:
            net = build_encoder(name, channels=info.channels, image_size=info.image_size, **info.options)
        except ByolError:
            raise
        except Exception as failure:  # options that nobody gave: a library raises nearly everything for them
            raise CheckpointError(
                f"{path} describes a network that cannot be built ({complaint(failure)}). Take another copy."
            ) from failure
    return files.filled(net, tensors, info, path, pick_device(device))


def untrained(encoder: Encoder, *, seed: int = 0, net: nn.Module | str | None = None) -> Encoder:
    """The same network with fresh weights that follow from the seed, on the same device: what training has to beat.

    `net` is the fresh network, or for a network of your own its "package.module:function", as in `load_encoder`; a module is
    needed here for every encoder that is one. Raises ConfigError when the network cannot be built.
    """
    info = encoder.info
    if not isinstance(net, nn.Module):
        if net is None and not from_a_library(info):
            raise ConfigError(
                "The encoder is code of your own, so only you can build a fresh one: give net=..., or "
                "--encoder package.module:function."
            )
        name = info.encoder if net is None or from_a_library(info) else net
        assert name is not None
        with torch.random.fork_rng([]):
            torch.default_generator.manual_seed(
                seed_of(seed, Stream.ENCODER)
            )  # of the CPU alone: torch.manual_seed reseeds all GPUs
            net = build_encoder(name, channels=info.channels, image_size=info.image_size, **info.options)
    network = HiddenLayer(net, info.hidden_layer or OUTPUT, info.pooling, info.skip, info.calls)
    return files.ready(network, info, device_of(encoder))


def builtin(path: str | Path, info: EncoderInfo) -> str:
    """The name an encoder file gives, if building it runs no code but this package's, torchvision's or timm's."""
    if info.encoder is None or not from_a_library(info):
        what = "a module of your own" if info.encoder is None else f"{info.encoder!r}, code of your own"
        raise OwnNetwork(
            f"The encoder in {path} is {what}, which is not built because a file says so. Build it yourself: "
            "load_encoder(path, net=...), or --encoder package.module:function."
        )
    return info.encoder


def from_a_library(info: EncoderInfo) -> bool:
    """Whether an encoder is one of this package's, of torchvision or of timm, and no code of the user's own."""
    return info.encoder is not None and not is_own_code(info.encoder)


def folder_of(word: str) -> Path | None:
    """Where what belongs to an encoder is kept, by its path or name; a network of a library has no such place."""
    if word.startswith(LIBRARIES):
        return None
    path = Path(word)
    return path if os.path.isdir(path) else path.parent

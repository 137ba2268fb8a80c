"""Encoders out of checkpoints of the official code and of other libraries."""

import logging
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from byol.encoders.encoder import Encoder, EncoderInfo, ready
from byol.encoders.foreign import BLOCK, ForeignEncoder, kind_of, read_foreign, take
from byol.encoders.official import read_official
from byol.errors import CheckpointError, ConfigError
from byol.method.crops import Interpolation
from byol.method.hidden import HiddenLayer
from byol.method.probe import probe
from byol.method.views import ViewConfig, normalisation
from byol.models.build import WIDTHS, build_encoder
from byol.models.resnet import BLOCKS, DEPTHS, Padding

logger = logging.getLogger("byol")
Shape = tuple[int, ...]

LAYERS = ("conv1.weight", *(f"layer{stage}.0.conv2.weight" for stage in range(1, 5)))
PLAIN = "a plain ResNet: ReLU, strides in the 3x3 convolutions, no dilation and no BlurPool"


@dataclass(frozen=True)
class Preprocessing:
    """How the encoder's images are prepared, which no checkpoint tells."""

    image_size: int | None = None
    """Side in pixels of what the network is fed. By default 224, or 32 with a small first convolution."""
    mean: tuple[float, ...] | None = None
    """Mean of each channel of pixels from 0 to 1. By default ImageNet's."""
    std: tuple[float, ...] | None = None
    """Standard deviation of each channel. By default ImageNet's."""
    crop_ratio: float = 0.875
    """Side of the central square that is resized, as a share of the image's shorter side."""
    interpolation: Interpolation = "bicubic"
    """bicubic or bilinear."""
    antialias: bool | None = None
    """Antialiased resize. By default False for official checkpoints, as in their code, else True."""


@dataclass(frozen=True)
class Conversion:
    """An encoder, and what became of everything in its file."""

    encoder: Encoder
    source: str  # what the file is
    matched: int  # tensors that are in the encoder now
    left_out: dict[str, int]  # the other tensors, counted by what they belong to
    assumed: tuple[str, ...]  # what the file does not say


def convert(
    path: str | Path,
    *,
    encoder: str | None = None,
    prefix: str | None = None,
    hidden_layer: str | None = None,
    padding: Padding | None = None,
    preprocessing: Preprocessing | None = None,
) -> Conversion:
    """The online encoder of an official checkpoint, or of a torch checkpoint of another library.

    What the file is shows by its content; nothing in it is executed. `padding` is "same" for official
    checkpoints, as their code pads, or "symmetric" for a plain torchvision network, with other features.
    `encoder` is a name for `build_encoder` for networks other than ResNets, `prefix` where in a torch
    checkpoint it is, and `hidden_layer` where the network gives its representation. Raises CheckpointError
    for a file that is something else, damaged or hostile, ConfigError for wrong settings.
    """
    path, told = Path(path), preprocessing or Preprocessing()
    kind = kind_of(path)
    if kind == "torch":
        found = read_foreign(path, prefix)
        assumed = ["the images are prepared as told below"]
    elif kind != "pickle":
        raise CheckpointError(
            f"{path} is neither an official checkpoint (a pickle of protocol 2 or newer) nor a torch "
            f"checkpoint: it is {kind}."
        )
    elif (encoder, prefix, hidden_layer) != (None, None, None):
        raise ConfigError(
            f"{path} is an official checkpoint, which tells its network: leave encoder, prefix and "
            "hidden_layer out."
        )
    else:
        found, assumed = official_encoder(path), []
        if padding == "symmetric":
            logger.warning(
                "Padded so, the features are not the official ones: in a test they were 61 % apart."
            )
    name, options, channels, side = encoder, dict[str, Any](), len(told.mean or (0, 0, 0)), 224
    if name is None:
        name, options = recognised(found, path)
        channels = found.tensors["conv1.weight"].shape[1]
        assumed += [] if found.official else [PLAIN]
        if padding == "same" or (padding is None and found.official):
            options["padding"] = "same"
        if "stem" in options:
            side, pads = 32, 2 if found.padded_stem else 1
            options["stem"] = "solo-learn" if found.padded_stem else "small"
            assumed.append(f"the first convolution has stride 1 and padding {pads}, and no pooling follows")
    elif padding is not None:
        raise ConfigError(f"padding is {padding!r}, and {name} pads as it does. Leave one of them out.")
    side = side if told.image_size is None else told.image_size
    size: dict[str, Any] = {"image_size": (side, side), "channels": channels}
    mean, std = normalisation(ViewConfig(), channels)
    images = {
        **size, "mean": told.mean or mean, "std": told.std or std, "crop_ratio": told.crop_ratio,
        "interpolation": told.interpolation,
        "antialias": not found.official if told.antialias is None else told.antialias,
    }  # fmt: skip
    # No memory and no random draws for weights that are in the file, where the network is our own.
    own = (encoder, hidden_layer) == (None, None)
    with torch.device("meta" if own else "cpu"):
        net: Any = build_encoder(name, **size, **options)
    under = f"under {found.prefix!r} " if found.prefix else ""
    matched, classifier = take(net, found.tensors, name, f"{under}in {path}", found.advice)
    if own:
        network, features = HiddenLayer(net), net.num_features
    else:
        probed = probe(net, hidden_layer, **size)
        network, features = probed.encoder, probed.features
    info = EncoderInfo.of(network, name, options, features=features, **images)
    made = ready(net, network.layer, info, torch.device("cpu"))
    return Conversion(made, found.source, matched, found.left_out | classifier, tuple(assumed))


def official_encoder(path: Path) -> ForeignEncoder:
    """The online encoder of an official checkpoint."""
    checkpoint = read_official(path)
    names = [f"{which} {name}" for which, arrays in checkpoint.networks.items() for name in arrays]
    left = Counter(name.partition(".")[0] for name in names)
    del left["online encoder"]
    source = f"official checkpoint after {checkpoint.step:,} steps"
    return ForeignEncoder(source, "", checkpoint.state(), dict(left), advice="", official=True)


def recognised(found: ForeignEncoder, path: Path) -> tuple[str, dict[str, Any]]:
    """The name and options of the ResNet that was found, or a sentence that says what is in the way."""
    try:
        return resnet_of({key: tuple(tensor.shape) for key, tensor in found.tensors.items()})
    except ValueError as failure:
        reason = f"{failure}."
        if BLOCK not in found.tensors and not found.official:
            reason = f"there is no {BLOCK} under {found.prefix!r}. The tensors are {found.seen}."
        raise CheckpointError(
            f"The encoder in {path} is not a ResNet that byol can recognise: {reason}{found.advice}"
        ) from failure


def resnet_of(shapes: Mapping[str, Shape]) -> tuple[str, dict[str, Any]]:
    """Name and options for `build_encoder` of a ResNet, from its tensors' shapes by torchvision's names.

    A first convolution of 7x7 is taken for the "imagenet" stem, any other for the "small" one. Raises
    ValueError with the reason when the tensors are those of no such ResNet.
    """
    for name in LAYERS:
        if len(shapes.get(name, ())) != 4:
            raise ValueError(f"{name} is {f'of shape {shapes[name]}' if name in shapes else 'missing'}")
    first, *stages = (shapes[name] for name in LAYERS)
    blocks = [
        sum(bool(re.fullmatch(rf"layer{k}\.\d+\.conv2\.weight", name)) for name in shapes)
        for k in range(1, 5)
    ]
    block = "bottleneck" if "layer1.0.conv3.weight" in shapes else "basic"
    if any(out_channels != in_channels for out_channels, in_channels, *_ in stages):
        raise ValueError("its convolutions are grouped, as a ResNeXt's are")
    if block == "basic" and "layer1.0.downsample.0.weight" in shapes:
        raise ValueError("its first stage has a projection, as only the official code's ResNet-18 has")
    stem = {} if first[2:] == (7, 7) else {"stem": "small"}
    channels = [first[0], *(shape[0] for shape in stages)]
    for depth, (kind, counts) in DEPTHS.items():
        for width in WIDTHS:
            usual = [64 * width * multiple for multiple in (1, 1, 2, 4, 8)]
            if kind is BLOCKS[block] and blocks == list(counts) and channels == usual:
                return f"resnet{depth}" + (f"x{width}" if width > 1 else ""), stem
    numbers = {"blocks": blocks, "stem_channels": channels[0], "stage_channels": channels[1:]}
    return "resnet", {"block": block, **numbers, **stem}

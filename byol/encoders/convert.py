"""Encoders out of checkpoints that other programs wrote: the official code's, byol-pytorch's, lightly's, solo-learn's."""

import logging
import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from byol.encoders.encoder import Encoder, EncoderInfo, filled
from byol.encoders.foreign import ForeignEncoder, is_torch, read_foreign
from byol.encoders.official import read_official
from byol.encoders.pickles import is_pickle
from byol.errors import CheckpointError, ConfigError
from byol.method.crops import Interpolation
from byol.method.hidden import HiddenLayer
from byol.method.probe import probe
from byol.method.views import ViewConfig, normalisation
from byol.models.build import HEADS, WIDTHS, build_encoder
from byol.models.resnet import BLOCKS, DEPTHS, Padding

logger = logging.getLogger("byol")
Shape = tuple[int, ...]

# How files begin that are taken for checkpoints by mistake.
MISTAKES = {
    b"<": "it begins like a web page: download the file itself",
    b"version https:": "it is a git-lfs pointer: fetch the file it stands for",
    b"\x1f\x8b": "it is compressed: unpack it first",
    b"\x89HDF": "it is an HDF5 file",
}

OTHER_NETWORKS = " Name the network with --encoder (torchvision:NAME, timm:NAME or package.module:function), or its place with --prefix."


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
    """Antialiased resize. By default False for official checkpoints, whose code does not, and True for others."""

    def __post_init__(self) -> None:
        if self.image_size is not None and self.image_size < 1:
            raise ConfigError(f"image_size is {self.image_size}; expected at least 1.")
        if not 0 < self.crop_ratio <= 1:
            raise ConfigError(
                f"crop_ratio is {self.crop_ratio}; expected a share of more than 0 and up to 1."
            )
        if self.std is not None and not all(deviation > 0 for deviation in self.std):
            raise ConfigError(f"std is {self.std}; expected positive numbers.")

    def info(
        self,
        network: HiddenLayer,
        name: str,
        options: dict[str, Any],
        features: int,
        channels: int,
        **default: Any,
    ) -> EncoderInfo:
        """The description of an encoder that is fed so."""
        mean, std = normalisation(ViewConfig(), channels)
        mean, std = self.mean or mean, self.std or std
        if not len(mean) == len(std) == channels:
            raise ConfigError(
                f"mean has {len(mean)} and std {len(std)} numbers; the encoder takes {channels} channels."
            )
        side = self.image_size or default["image_size"]
        return EncoderInfo.of(
            network,
            name,
            options,
            image_size=(side, side),
            channels=channels,
            mean=mean,
            std=std,
            features=features,
            crop_ratio=self.crop_ratio,
            interpolation=self.interpolation,
            antialias=default["antialias"] if self.antialias is None else self.antialias,
        )


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
    """The online encoder of an official checkpoint, or of a torch checkpoint of byol-pytorch, lightly or solo-learn.

    What the file is shows by its content. `padding` is "same" for official checkpoints, as their code pads, or "symmetric"
    for a plain torchvision network, which gives other features; for torch checkpoints "symmetric" is the default.
    `encoder` is a name for `build_encoder` for networks other than ResNets, `prefix` where in a torch checkpoint it is, and
    `hidden_layer` where the network gives its representation. Nothing in the file is executed. Raises CheckpointError for a
    file that is something else, damaged or hostile, and ConfigError for settings that cannot be.
    """
    path, preprocessing = Path(path), preprocessing or Preprocessing()
    head = first_bytes(path)
    if is_torch(head):
        return convert_foreign(
            read_foreign(path, prefix), path, encoder, hidden_layer, padding, preprocessing
        )
    if not is_pickle(head):
        reason = next(
            (text for start, text in MISTAKES.items() if head.startswith(start)), "it is neither, or damaged"
        )
        if head[8:9] == b"{":
            reason = (
                "it is a safetensors file. An encoder of byol's needs no converting; tensors of torchvision or timm are given "
                "as --weights beside torchvision:NAME or timm:NAME"
            )
        raise CheckpointError(
            f"{path} is no official checkpoint (a pickle of protocol 2 or newer) and no torch checkpoint: "
            f"{reason if head else 'it is empty'}."
        )
    if (encoder, prefix, hidden_layer) != (None, None, None):
        raise ConfigError(
            f"{path} is an official checkpoint, which tells its network: leave encoder, prefix and hidden_layer out."
        )
    return convert_official(path, padding or "same", preprocessing)


def convert_official(path: Path, padding: Padding, preprocessing: Preprocessing) -> Conversion:
    """The online encoder of an official checkpoint; with SAME padding its features are the official ones."""
    checkpoint = read_official(path)
    if padding == "symmetric":
        logger.warning(
            "With symmetric padding the features are not the official ones: 61 % of their norm apart in a test."
        )
    shapes = checkpoint.shapes()
    name, options = recognised(shapes, path, "")
    options |= {"padding": "same"} if padding == "same" else {}
    channels = shapes["conv1.weight"][1]
    with torch.device("meta"):  # no memory and no random draws for weights that are in the file
        net: Any = build_encoder(name, channels=channels, **options)
    network = HiddenLayer(net)
    info = preprocessing.info(
        network, name, options, net.num_features, channels, image_size=224, antialias=False
    )
    encoder = filled(net, without_nan(checkpoint.state(), path), info, path)
    parts = Counter(
        f"{which} {key.partition('.')[0]}" for which, arrays in checkpoint.networks.items() for key in arrays
    )
    matched = parts.pop("online encoder")
    return Conversion(
        encoder, f"official checkpoint after {checkpoint.step:,} steps", matched, dict(parts), ()
    )


def convert_foreign(
    found: ForeignEncoder,
    path: Path,
    name: str | None,
    hidden_layer: str | None,
    padding: Padding | None,
    preprocessing: Preprocessing,
) -> Conversion:
    """The online encoder of a torch checkpoint."""
    shapes = {key: tuple(tensor.shape) for key, tensor in found.tensors.items()}
    options: dict[str, Any] = {}
    assumed = ["the images are prepared as told below"]
    channels = len(preprocessing.mean or (0, 0, 0))
    if name is not None and padding is not None:
        raise ConfigError(
            f"padding is {padding!r}, and {name} pads as it does. Leave out padding or encoder."
        )
    if name is None:
        name, options = recognised(shapes, path, OTHER_NETWORKS)
        channels = shapes["conv1.weight"][1]
        options |= {"padding": padding} if padding == "same" else {}
        if "stem" in options:
            options["stem"] = "solo-learn" if found.padded_stem else "small"
            pads = "2, as solo-learn does" if found.padded_stem else "1"
            assumed.append(f"the first convolution has stride 1 and padding {pads}, and no pooling follows")
    side = 32 if "stem" in options else 224
    size = preprocessing.image_size or side
    net = build_encoder(name, channels=channels, image_size=size, **options)
    tensors, classifier = fitting(found, set(net.state_dict()), name, path)
    probed = probe(
        net, hidden_layer, torch.rand((2, channels, size, size), generator=torch.Generator().manual_seed(0))
    )
    info = preprocessing.info(
        probed.encoder, name, options, probed.features, channels, image_size=side, antialias=True
    )
    encoder = filled(net, without_nan(tensors, path), info, path)
    source = f"torch checkpoint of {found.library}" + (
        f", encoder under {found.prefix!r}" if found.prefix else ""
    )
    return Conversion(encoder, source, len(tensors), found.left_out | classifier, tuple(assumed))


def without_nan(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The tensors; raises CheckpointError when one holds NaN or infinity."""
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise CheckpointError(
                f"{name} in {path} holds NaN or infinity: damaged, or the training diverged. Take another copy."
            )
    return tensors


def fitting(
    found: ForeignEncoder, ours: set[str], name: str, path: Path
) -> tuple[dict[str, Tensor], dict[str, int]]:
    """The tensors that the network has, and how many a classifier behind it has; any other difference is refused."""
    theirs = found.tensors
    missing = [
        key for key in ours - theirs.keys() if not key.endswith("num_batches_tracked")
    ]  # older files have none
    classifier = Counter(key.partition(".")[0] for key in theirs.keys() - ours)
    unknown = [key for key in theirs.keys() - ours if key.partition(".")[0] not in HEADS]
    if missing or unknown:
        said = [
            f"{len(keys)} {what} ({sorted(keys)[0]}, ...)"
            for keys, what in ((missing, "missing"), (unknown, "too many"))
            if keys
        ]
        raise CheckpointError(
            f"The tensors under {found.prefix!r} in {path} are not those of {name}: {' and '.join(said)}. Name the network "
            "with --encoder (torchvision:NAME, timm:NAME or package.module:function), or the tensors' place with --prefix."
        )
    return {key: tensor for key, tensor in theirs.items() if key in ours}, dict(classifier)


def recognised(shapes: dict[str, Shape], path: Path, advice: str) -> tuple[str, dict[str, Any]]:
    """The name and options of the ResNet with such tensors, or a sentence that says what is in the way."""
    try:
        return resnet_of(shapes)
    except ValueError as failure:
        raise CheckpointError(
            f"The encoder in {path} is no ResNet that byol can recognise: {failure}.{advice}"
        ) from failure


def first_bytes(path: Path) -> bytes:
    """What a file begins with."""
    try:
        with path.open("rb") as file:
            return file.read(64)
    except OSError as failure:
        reason = "it is a folder" if os.path.isdir(path) else str(failure.strerror)
        raise CheckpointError(f"{path} cannot be read ({reason}). Give a checkpoint file.") from failure


def resnet_of(shapes: Mapping[str, Shape]) -> tuple[str, dict[str, Any]]:
    """The name and options for `build_encoder` of a ResNet, from the shapes of its tensors by torchvision's names.

    A first convolution of 7x7 is taken for the "imagenet" stem, any other for the "small" one. Raises ValueError with the
    reason when the tensors are those of no such ResNet.
    """
    blocks = [count_blocks(shapes, stage) for stage in range(1, 5)]
    first = convolution(shapes, "conv1.weight")
    stages = [convolution(shapes, f"layer{stage}.0.conv2.weight") for stage in range(1, 5)]
    block = "bottleneck" if "layer1.0.conv3.weight" in shapes else "basic"
    if any(out_channels != in_channels for out_channels, in_channels, *_ in stages):
        raise ValueError("its convolutions are grouped, as a ResNeXt's are")
    if block == "basic" and "layer1.0.downsample.0.weight" in shapes:
        raise ValueError(
            "its first stage has a projection, as the official code's ResNet-18 and -34 have and torchvision's and byol's "
            "have not"
        )
    stem = {} if first[2:] == (7, 7) else {"stem": "small"}
    channels = [first[0], *(shape[0] for shape in stages)]
    for depth, (kind, counts) in DEPTHS.items():
        for width in WIDTHS:
            usual = [64 * width * multiple for multiple in (1, 1, 2, 4, 8)]
            if kind is BLOCKS[block] and blocks == list(counts) and channels == usual:
                return f"resnet{depth}" + (f"x{width}" if width > 1 else ""), stem
    return "resnet", {
        "block": block,
        "blocks": blocks,
        "stem_channels": channels[0],
        "stage_channels": channels[1:],
        **stem,
    }


def count_blocks(shapes: Mapping[str, Shape], stage: int) -> int:
    """The blocks of a stage, numbered from 0 without a gap."""
    matches = (re.fullmatch(rf"layer{stage}\.([0-9]{{1,4}})\.conv1\.weight", name) for name in shapes)
    found = sorted(int(match[1]) for match in matches if match)
    if not found or found != list(range(len(found))):
        raise ValueError(f"its stage {stage} has {f'the blocks {found}' if found else 'no block'}")
    return len(found)


def convolution(shapes: Mapping[str, Shape], name: str) -> Shape:
    """The shape (out, in, height, width) of a convolution's weight."""
    if len(shapes.get(name, ())) != 4:
        raise ValueError(f"{name} is {f'of shape {shapes[name]}' if name in shapes else 'missing'}")
    return shapes[name]

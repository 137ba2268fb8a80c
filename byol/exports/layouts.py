"""Layouts that torchvision and timm load: the same tensors by the same names give the same features."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from byol.disk import by_way_of_memory, in_utf8, read_safetensors, replacing, write_text
from byol.encoders.encoder import Encoder, unshared
from byol.errors import ByolError, ConfigError, library
from byol.exports.verify import Check, compared
from byol.models.build import build_encoder, model_names


class DoesNotFit(ConfigError):
    """An encoder that a library has no model for."""

    def __init__(self, reason: str) -> None:
        advice = "Export it as safetensors, huggingface, onnx or torch.export, which take any encoder."
        super().__init__(f"{reason}. {advice}")


@dataclass(frozen=True)
class Fitted:
    """A library's model without its classifier that has an encoder's tensors and gives its features."""

    net: nn.Module
    tensors: dict[str, Tensor]
    model: str  # its name
    options: dict[str, Any]


def fitted(encoder: Encoder, source: str, model: str | None = None) -> Fitted:
    """The model of "torchvision" or "timm" that an encoder is; `model` names it for a network of your own.

    Raises DoesNotFit when there is none, ConfigError when the library is missing or has no such model.
    """
    info = encoder.info
    home, _, name = (info.architecture or "").rpartition(":")
    how = "".join(f", {key} {value}" for key, value in info.options.items())
    if model is None and not info.from_a_library:
        raise DoesNotFit(
            f"The encoder is a network of your own. If it is one of {source}, say which with model, such as "
            "model='resnet50'"
        )
    if model is None and name not in model_names(source):
        raise DoesNotFit(f"{source} has no {name}{how}")
    if source == "torchvision" and info.channels != 3:
        raise DoesNotFit(f"torchvision's models take 3 channels, this encoder takes {info.channels}")
    options = info.options if home == source and model is None else {}
    model = model or name
    size: dict[str, Any] = {"channels": info.channels, "image_size": info.image_size}
    net = build_encoder(f"{source}:{model}", **size, **options).eval()
    ours, theirs = encoder.tensors(), net.state_dict()
    for key, value in theirs.items():
        if key not in ours or ours[key].shape != value.shape:
            has = f"{tuple(ours[key].shape)}" if key in ours else "none"
            shape = tuple(value.shape)
            raise DoesNotFit(f"{source}'s {model} has {key} of shape {shape}, this encoder has {has}")
    tensors = unshared({key: ours[key] for key in theirs})
    net.load_state_dict(tensors)
    if not (check := compared(encoder, source, net)).agrees:
        raise DoesNotFit(
            f"{source}'s {model} with this encoder's weights gives {check}: it computes otherwise than "
            f"{name or 'your network'}{how}"
        )
    return Fitted(net, tensors, model, options)


def write_torchvision(found: Fitted, encoder: Encoder, file: Path) -> Check:
    """Write tensors by torchvision's names, without the classifier; load and compare them."""
    if file.suffix == ".pth":
        with by_way_of_memory(file) as held:  # also, torch would put the passing name into the file
            torch.save(found.tensors, held)
        loaded = torch.load(file, weights_only=True)
    else:
        save_file(found.tensors, file, metadata={"preprocessing": json.dumps(encoder.info.preprocessing())})
        loaded, _ = read_safetensors(file)
    found.net.load_state_dict(loaded)
    return compared(encoder, "torchvision", found.net)


def centred_crop(height: int, width: int, ratio: float) -> float:
    """The share of the shorter side that timm has to crop, so that its crop lies where ours does.

    timm resizes first, to whole pixels, and crops then: where an odd number of them has to go, its crop is
    off by half of one. The nearest size that leaves an even number is a smaller difference.
    """
    wanted = width / ratio
    if height != width or (math.floor(wanted) - width) % 2 == 0:
        return ratio
    side = width + 2 * max(1, round((wanted - width) / 2))
    return math.floor(1e4 * width / side) / 1e4  # timm rounds down the size that it makes of it


def write_timm(found: Fitted, encoder: Encoder, folder: Path) -> Check:
    """Fill a folder for timm's `local-dir:`; load and compare it."""
    timm, info = library("timm"), encoder.info
    theirs = timm.get_pretrained_cfg(found.model)
    # timm takes it from input_size, transformers does not.
    sized = {"img_size": list(info.image_size)} if theirs and theirs.fixed_input_size else {}
    config = {
        "architecture": found.model,
        "num_classes": 0,
        "num_features": info.features,
        "model_args": sized | found.options,
        "pretrained_cfg": {
            "input_size": [info.channels, *info.image_size],
            "fixed_input_size": bool(theirs and theirs.fixed_input_size),
            "interpolation": info.interpolation,
            "crop_pct": centred_crop(*info.image_size, info.crop_ratio),
            "crop_mode": "center",
            "mean": list(info.mean),
            "std": list(info.std),
            "num_classes": 0,
            # Of other channels older timm would draw it anew.
            "first_conv": theirs.first_conv if theirs and info.channels == 3 else None,
            "classifier": theirs.classifier if theirs else None,
        },
    }
    write_text(folder / "config.json", json.dumps(config, indent=2) + "\n")
    with replacing(folder / "model.safetensors") as temporary:
        save_file(found.tensors, temporary, metadata={"format": "pt"})
    try:
        with in_utf8(folder) as named:
            net = timm.create_model(f"local-dir:{named}", pretrained=True, num_classes=0).eval()
    except Exception as failure:  # whatever timm says of a folder that it cannot load
        raise ByolError(f"timm cannot load what was exported ({failure}); it was deleted.") from failure
    return compared(encoder, "timm", net)

"""Layouts that torchvision and timm load: the same tensors by the same names, proven to give the same features."""

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from byol.disk import replacing, write_text
from byol.encoders.encoder import Encoder, unshared
from byol.errors import ByolError, ConfigError
from byol.exports.verify import Check, agrees, difference, in_words
from byol.models.build import build_encoder, library, model_names

OTHERWISE = "Export it as safetensors, huggingface, onnx or torch.export, which take any encoder."


class DoesNotFit(ConfigError):
    """An encoder that a library has no model for."""


@dataclass(frozen=True)
class Fitted:
    """A library's model and the encoder's tensors for it."""

    library: str  # "torchvision" or "timm"
    model: str
    options: dict[str, Any]
    tensors: dict[str, Tensor]


def fitted(encoder: Encoder, source: str, model: str | None = None) -> Fitted:
    """The model of torchvision or timm that takes an encoder's tensors and gives its features.

    `model` names it when the encoder was a module of the user's own. Raises DoesNotFit when there is none, ConfigError when
    the library is missing or has no model of that name.
    """
    info = encoder.info
    home, _, name = (info.architecture or "").rpartition(":")
    if model is None and not info.from_a_library:
        raise DoesNotFit(
            f"The encoder is a network of your own. If it is one of {source}, say which with model, such as model='resnet50'. "
            "Any network can be exported as safetensors, huggingface, onnx or torch.export."
        )
    how = ", ".join(f"{key} {value}" for key, value in info.options.items())
    if model is None and name not in model_names(source):
        raise DoesNotFit(f"{source} has no {name}{f' with {how}' if how else ''}. {OTHERWISE}")
    if source == "torchvision" and info.channels != 3:
        raise DoesNotFit(
            f"torchvision's models take 3 channels, this encoder takes {info.channels}. {OTHERWISE}"
        )
    options = info.options if home == source and model is None else {}
    found = Fitted(source, model or name, options, {})
    net = fresh(found, encoder)
    ours, theirs = encoder.tensors(), net.state_dict()
    for key, value in theirs.items():
        if key not in ours or ours[key].shape != value.shape:
            has = f"{tuple(ours[key].shape)}" if key in ours else "none"
            raise DoesNotFit(
                f"{source}'s {found.model} has {key} of shape {tuple(value.shape)}, this encoder has {has}. {OTHERWISE}"
            )
    tensors = unshared({key: ours[key] for key in theirs})
    net.load_state_dict(tensors)
    compared = difference(encoder, net, [info.image_size])
    if not agrees(compared):
        raise DoesNotFit(
            f"{source}'s {found.model} with this encoder's weights gives {in_words(compared)}: it computes otherwise"
            f"{f' than an encoder with {how}' if how else ''}. {OTHERWISE}"
        )
    return Fitted(source, found.model, options, tensors)


def fresh(found: Fitted, encoder: Encoder) -> nn.Module:
    """The library's model without its classifier, with random weights, in eval mode."""
    info = encoder.info
    name = f"{found.library}:{found.model}"
    return build_encoder(name, channels=info.channels, image_size=info.image_size, **found.options).eval()


def write_torchvision(found: Fitted, encoder: Encoder, file: Path) -> Check:
    """Write tensors by torchvision's names, without the classifier; load and compare them."""
    if file.suffix == ".pth":
        save_tensors(found.tensors, file)
        loaded = torch.load(file, weights_only=True)
    else:
        save_file(found.tensors, file, metadata={"preprocessing": json.dumps(encoder.info.preprocessing())})
        loaded = load_file(file)
    net = fresh(found, encoder)
    net.load_state_dict(loaded)
    return Check("torchvision", difference(encoder, net, [size := encoder.info.image_size]), (size,))


def save_tensors(tensors: dict[str, Tensor], file: Path) -> None:
    """Write a torch checkpoint. torch itself would put the file's passing name into it, and on a full disk raise no OSError."""
    held = io.BytesIO()
    torch.save(tensors, held)
    file.write_bytes(held.getbuffer())


def write_timm(found: Fitted, encoder: Encoder, folder: Path) -> Check:
    """Fill a folder for timm's `local-dir:`; load and compare it."""
    timm = library("timm")
    info = encoder.info
    theirs = timm.get_pretrained_cfg(found.model)
    config = {
        "architecture": found.model,
        "num_classes": 0,
        "num_features": info.features,
        "model_args": found.options,
        "pretrained_cfg": {
            "input_size": [info.channels, *info.image_size],
            "fixed_input_size": bool(theirs and theirs.fixed_input_size),
            "interpolation": info.interpolation,
            "crop_pct": info.crop_ratio,
            "crop_mode": "center",
            "mean": list(info.mean),
            "std": list(info.std),
            "num_classes": 0,
            "first_conv": theirs.first_conv
            if theirs and info.channels == 3
            else None,  # else older timm draws it anew
            "classifier": theirs.classifier if theirs else None,
        },
    }
    write_text(folder / "config.json", json.dumps(config, indent=2) + "\n")
    with replacing(folder / "model.safetensors") as temporary:
        save_file(found.tensors, temporary, metadata={"format": "pt"})
    try:
        net = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0).eval()
    except Exception as failure:  # whatever timm says of a folder that it cannot load
        raise ByolError(f"timm cannot load what was exported ({failure}); it was deleted.") from failure
    return Check("timm", difference(encoder, net, [info.image_size]), (info.image_size,))

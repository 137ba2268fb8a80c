"""Pretrained networks of torchvision and timm as encoders; nothing is downloaded."""

import inspect
import os
import re
from pathlib import Path
from typing import Any, get_type_hints

import torch
from torch import Tensor, nn

from byol.disk import read_safetensors
from byol.encoders import foreign
from byol.encoders.encoder import Encoder, EncoderInfo, ready
from byol.errors import CheckpointError, ConfigError, complaint, damaged, library
from byol.method.hidden import OUTPUT
from byol.method.probe import probe
from byol.models.build import build_encoder, check_model
from byol.world import pick_device


def pretrained_encoder(
    name: str, *, weights: str | Path | None = None, device: str | None = "cpu"
) -> Encoder:
    """An encoder "torchvision:NAME" or "timm:NAME" with pretrained weights and without its classifier.

    `weights` is a file of the network's tensors, with or without the classifier's; by default the library's
    own are taken from where it keeps what it downloaded. Images are prepared as the library says for them.
    Raises ConfigError when there are none, CheckpointError for a file that is damaged or does not fit.
    """
    file = None if weights is None else Path(weights)
    if file is not None and not os.path.isfile(file):
        raise ConfigError(f"There is no file {file}; expected the tensors of {name}.")
    source, _, model = name.partition(":")
    net, options, images = (torchvision_net if source == "torchvision" else timm_net)(model, file)
    images["interpolation"] = "bilinear" if images["interpolation"] == "bilinear" else "bicubic"
    found = probe(net.eval(), OUTPUT, image_size=images["image_size"], channels=3)
    built = name.partition(".")[0]  # a tag tells timm's weights apart, not its networks
    info = EncoderInfo.of(found.encoder, built, options, channels=3, features=found.features, **images)
    return ready(net, OUTPUT, info, pick_device(device))


def torchvision_net(name: str, file: Path | None) -> tuple[nn.Module, dict[str, Any], dict[str, Any]]:
    """The network, its options, and how its images are prepared, by the names of `EncoderInfo`."""
    models = library("torchvision").models
    check_model("torchvision", name)
    kinds, folder = models.get_model_weights(name), Path(torch.hub.get_dir(), "checkpoints")
    places = {folder / kind.url.rpartition("/")[2]: kind for kind in (kinds.DEFAULT, *kinds)}
    file = file or existing(f"torchvision:{name}", list(places))
    kind = next((kind for place, kind in places.items() if place.name == file.name), kinds.DEFAULT)
    takes = inspect.signature(get_type_hints(models.get_model_builder(name))["return"]).parameters
    # What torchvision builds GoogLeNet and Inception with when it loads their weights itself.
    options = {"transform_input": True} if "transform_input" in takes else {}
    quick = {"init_weights": False} if "init_weights" in takes else {}
    net = build_encoder(f"torchvision:{name}", image_size=kind.meta["min_size"][0], **options, **quick)
    # DenseNet's weights have names of long ago, "norm.1" for "norm1".
    old = re.compile(r"(denselayer\d+\.(?:norm|conv))\.(\d)")
    tensors = {old.sub(r"\1\2", key): value for key, value in stored(file).items()}
    foreign.take(net, tensors, f"torchvision:{name}", f"in {file}")
    to = kind.transforms()
    side = to.crop_size[0]
    images = {"mean": tuple(to.mean), "std": tuple(to.std), "interpolation": to.interpolation.value}
    return net, options, {**images, "image_size": (side, side), "crop_ratio": side / to.resize_size[0]}


def timm_net(name: str, file: Path | None) -> tuple[nn.Module, dict[str, Any], dict[str, Any]]:
    """As `torchvision_net`; the name may carry the tag of the weights, such as resnet50.a1_in1k."""
    timm = library("timm")
    check_model("timm", name.partition(".")[0])
    try:
        settings = timm.get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError as failure:
        raise ConfigError(f"timm knows no weights {name!r}: {failure} Leave the tag out.") from failure
    if file is None:
        from huggingface_hub import try_to_load_from_cache  # comes with timm

        names = ("model.safetensors", "pytorch_model.bin") if settings.hf_hub_id else ()
        found = (try_to_load_from_cache(settings.hf_hub_id, kind) for kind in names)
        cached = [Path(path) for path in found if isinstance(path, str)]
        downloaded = Path(torch.hub.get_dir(), "checkpoints", str(settings.url or "none").rpartition("/")[2])
        file = existing(f"timm:{name}", [*cached, downloaded])
    tensors, classifier = stored(file), f"{settings.classifier}."
    if not any(key.startswith(classifier) for key in tensors):  # a fresh one, which is taken off anyway
        own = timm.create_model(name).state_dict()
        tensors |= {key: value for key, value in own.items() if key.startswith(classifier)}
    try:
        net: Any = timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"state_dict": tensors})
    except Exception as failure:  # timm renames the tensors first, and raises nearly everything
        raise CheckpointError(f"{file} does not fit timm:{name}: {complaint(failure)}") from failure
    net.pretrained_cfg.pop("state_dict")
    net.reset_classifier(0)
    to = timm.data.resolve_model_data_config(net)
    images = {"mean": tuple(to["mean"]), "std": tuple(to["std"]), "interpolation": to["interpolation"]}
    return net, {}, {**images, "image_size": tuple(to["input_size"][1:]), "crop_ratio": to["crop_pct"]}


def existing(name: str, places: list[Path]) -> Path:
    """The first of some files that is there; raises ConfigError when none is."""
    for place in places:
        if os.path.isfile(place):
            return place
    raise ConfigError(
        f"There are no weights of {name} on this machine (looked for {places[0]}), and nothing is "
        "downloaded. Give a file with --weights FILE, or fetch them once with the library itself."
    )


def stored(file: Path) -> dict[str, Tensor]:
    """The tensors in a .safetensors or torch file by name; runs no code."""
    if file.suffix != ".safetensors":
        return foreign.tensors_in(foreign.load(file), file)
    try:
        return read_safetensors(file)[0]
    except Exception as failure:  # damaged files end in nearly every exception there is
        raise damaged(file, f"cannot be read ({complaint(failure)})") from failure

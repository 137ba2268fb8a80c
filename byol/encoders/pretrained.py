"""Pretrained networks of torchvision and timm as encoders; nothing is downloaded."""

import inspect
import os
import re
from pathlib import Path
from typing import Any, get_type_hints

import torch
from torch import Tensor, nn

from byol.encoders import foreign
from byol.encoders.encoder import Encoder, EncoderInfo, fill, ready
from byol.errors import CheckpointError, ConfigError, complaint
from byol.method.hidden import OUTPUT
from byol.method.probe import probe
from byol.models.build import check_model, classifier_of, library, remove_head
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
    net, images = (torchvision_net if source == "torchvision" else timm_net)(model, file)
    found = probe(net.eval(), OUTPUT, image_size=images["image_size"], channels=3)
    built = name.partition(".")[0]  # a tag tells timm's weights apart, not its networks
    info = EncoderInfo.of(found.encoder, built, {}, channels=3, features=found.features, **images)
    return ready(found.encoder, info, pick_device(device))


def torchvision_net(name: str, file: Path | None) -> tuple[nn.Module, dict[str, Any]]:
    """The network without its classifier, and how its images are prepared, by the names of `EncoderInfo`."""
    models = library("torchvision").models
    check_model("torchvision", name)
    usual = models.get_model_weights(name).DEFAULT
    folder = Path(torch.hub.get_dir(), "checkpoints")
    kinds = (usual, *models.get_model_weights(name))
    places = {folder / kind.url.rpartition("/")[2]: kind for kind in kinds}
    file = file or existing(f"torchvision:{name}", list(places))
    kind = next((kind for place, kind in places.items() if place.name == file.name), usual)
    builder = models.get_model_builder(name)
    takes = inspect.signature(get_type_hints(builder)["return"]).parameters
    # What torchvision builds GoogLeNet and Inception with when it loads their weights itself.
    options = {"aux_logits": True, "transform_input": True, "init_weights": False}
    options["image_size"] = kind.meta["min_size"][0]
    net: nn.Module = builder(weights=None, **{key: value for key, value in options.items() if key in takes})
    # DenseNet's weights have names of long ago, "norm.1" for "norm1".
    old = re.compile(r"(denselayer\d+\.(?:norm|conv))\.(\d)")
    tensors = {old.sub(r"\1\2", key): value for key, value in stored(file).items()}
    fill(net, with_classifier(tensors, net, classifier_of(net)), file)
    # Their auxiliary classifiers have weights in the file, and no use here.
    for part, value in (("aux1", None), ("aux2", None), ("AuxLogits", None), ("aux_logits", False)):
        if hasattr(net, part):
            setattr(net, part, value)
    remove_head(net)
    to, side = kind.transforms(), kind.transforms().crop_size[0]
    return net, fed((side, side), to.mean, to.std, side / to.resize_size[0], to.interpolation.value)


def timm_net(name: str, file: Path | None) -> tuple[nn.Module, dict[str, Any]]:
    """As `torchvision_net`; the name may carry the tag of the weights, such as resnet50.a1_in1k."""
    timm = library("timm")
    check_model("timm", name.partition(".")[0])
    try:
        settings = timm.get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError as failure:
        raise ConfigError(f"timm knows no weights {name!r}: {failure} Leave the tag out.") from failure
    if file is None:
        downloaded = Path(torch.hub.get_dir(), "checkpoints", str(settings.url or "none").rpartition("/")[2])
        file = existing(f"timm:{name}", [*in_hub_cache(settings.hf_hub_id), downloaded])
    tensors = stored(file)
    if isinstance(settings.classifier, str) and f"{settings.classifier}.weight" not in tensors:
        tensors = with_classifier(tensors, timm.create_model(name), settings.classifier)
    try:
        net: Any = timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"state_dict": tensors})
    except Exception as failure:  # timm renames the tensors first, and raises nearly everything
        raise CheckpointError(f"{file} does not fit timm:{name}: {complaint(failure)}") from failure
    net.pretrained_cfg.pop("state_dict")
    net.reset_classifier(0)
    to = timm.data.resolve_model_data_config(net)
    return net, fed(to["input_size"][1:], to["mean"], to["std"], to["crop_pct"], to["interpolation"])


def fed(size: Any, mean: Any, std: Any, crop_ratio: float, interpolation: str) -> dict[str, Any]:
    """How images are prepared, by the names of `EncoderInfo`; a resize that is not ours becomes bicubic."""
    kind = "bilinear" if interpolation == "bilinear" else "bicubic"
    known = {"image_size": tuple(size), "mean": tuple(mean), "std": tuple(std)}
    return {**known, "crop_ratio": crop_ratio, "interpolation": kind}


def in_hub_cache(repository: str | None) -> list[Path]:
    """The weights that huggingface_hub keeps of a repository on this machine."""
    from huggingface_hub import try_to_load_from_cache  # comes with timm

    names = ("model.safetensors", "pytorch_model.bin")
    found = [try_to_load_from_cache(repository, name) for name in names] if repository else []
    return [Path(path) for path in found if isinstance(path, str)]


def with_classifier(tensors: dict[str, Tensor], net: nn.Module, name: str | None) -> dict[str, Tensor]:
    """The tensors, and if they lack the classifier's the network's own fresh ones: it is taken off anyway."""
    own = {key: value for key, value in net.state_dict().items() if name and key.startswith(f"{name}.")}
    return tensors if own.keys() & tensors.keys() else {**own, **tensors}


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
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except Exception as failure:  # damaged files end in nearly every exception there is
        raise CheckpointError(
            f"{file} cannot be read ({complaint(failure)}). Take another copy."
        ) from failure

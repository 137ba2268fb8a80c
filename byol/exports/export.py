"""An encoder for other tools. Every export is loaded by its tool, and compared, before it appears."""

import copy
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from byol.disk import filling, replacing, write_text
from byol.encoders import encoder as files
from byol.encoders.encoder import Encoder
from byol.encoders.load import load_encoder
from byol.errors import ByolError, ConfigError, did_you_mean
from byol.evaluation.classifier import Classifier
from byol.exports.card import card
from byol.exports.graphs import write_graph
from byol.exports.layouts import DoesNotFit, fitted, write_timm, write_torchvision
from byol.exports.verify import Check, compared
from byol.features.embed import check_encoder

Format = Literal["safetensors", "torchvision", "huggingface", "timm", "torch.export", "onnx"]
# How the names of files end; of two formats the first is meant. "" is a folder.
SUFFIXES: dict[Format, tuple[str, ...]] = {
    "safetensors": (".safetensors",),
    "torchvision": (".pth", ".safetensors"),
    "huggingface": ("",),
    "timm": ("",),
    "torch.export": (".pt2",),
    "onnx": (".onnx",),
}
FOLDERS = ("timm", "huggingface")
GRAPHS = ("torch.export", "onnx")


@dataclass(frozen=True)
class Exported:
    """What was written, and how near the tool it is for comes to the encoder."""

    path: Path
    format: Format
    check: Check


def export(
    encoder: Encoder | Classifier,
    path: str | Path,
    *,
    format: Format | None = None,
    from_pixels: bool = True,
    run: str | Path | None = None,
    model: str | None = None,
) -> Exported:
    """Write an encoder or a classifier for another tool, load it there, compare, and only then let it appear.

    - "safetensors": this package's own encoder file.
    - "torchvision": tensors by torchvision's names, without the classifier; .safetensors or .pth.
    - "timm": a folder for `timm.create_model("local-dir:...")`, with its preprocessing.
    - "huggingface": the same with a model card; or this package's own file, where timm has no such model.
    - "torch.export" (.pt2), "onnx": the graph from "images" (B, C, H, W) float32 to "representation" (B, D)
      float32, for any B. Pixels are in [0, 1], normalised by the graph, or beforehand with from_pixels=False.
      Of a classifier these alone are possible: its graph gives "probabilities" (B, classes).

    `format` follows from the path's suffix when it is None; a path without one is a folder for huggingface.
    `run` is the folder of the run, of which the model card tells. `model` names the model of torchvision or
    timm that an encoder of your own is. Raises ConfigError for invalid values, and ByolError when the
    features differ by more than 1e-4 of the largest; then nothing is left behind.
    """
    classifier = copy.deepcopy(encoder).cpu() if isinstance(encoder, Classifier) else None
    encoder = encoder.encoder if isinstance(encoder, Classifier) else encoder
    check_encoder(encoder)
    if not encoder.info.takes_images:
        own = "The encoder takes samples of your own, not images, and no other tool knows how those are made"
        raise ConfigError(
            f"{own}. Export its network with torch itself: torch.onnx.export(encoder.net, ...)."
        )
    path = Path(path)
    format = checked_format(path, format)
    if classifier is not None and format not in GRAPHS:
        raise ConfigError(f"A classifier becomes a graph, .onnx or .pt2; {format} is for its encoder alone.")
    if not from_pixels and format not in GRAPHS:
        raise ConfigError(f"from_pixels=False is for onnx and torch.export; {format} normalises nothing.")
    if model is not None and format in ("safetensors", *GRAPHS):
        raise ConfigError(f"model={model!r} is for torchvision, timm and huggingface; {format} needs none.")
    encoder = copy.deepcopy(encoder).to(torch.device("cpu")).to(memory_format=torch.contiguous_format).eval()
    place = filling if format in FOLDERS else replacing
    with torch.random.fork_rng([]), place(path) as temporary:  # the caller's random state stays as it was
        if format in GRAPHS:
            check = write_graph(encoder, temporary, format, from_pixels, classifier)
        elif format == "torchvision":
            check = write_torchvision(fitted(encoder, format, model), encoder, temporary)
        elif format == "safetensors":
            check = write_own(encoder, temporary)
        else:
            check = fill_folder(encoder, temporary, format, None if run is None else Path(run), model)
        if not check.agrees:
            raise ByolError(f"{check.tool} gives {check}; the export was deleted.")
        if path.suffix == ".pth":  # holds tensors and nothing else
            described = {"model": model or encoder.info.architecture, **encoder.info.preprocessing()}
            write_text(path.with_name(f"{path.name}.json"), json.dumps(described, indent=1) + "\n")
    return Exported(path, format, check)


def fill_folder(encoder: Encoder, folder: Path, format: Format, run: Path | None, model: str | None) -> Check:
    """Fill a folder for timm, or for huggingface with a card; load and compare it."""
    try:
        found = fitted(encoder, "timm", model)
    except DoesNotFit:
        if model is not None or format == "timm":
            raise
        write_text(folder / "README.md", card(encoder, run, None))
        return write_own(encoder, folder)
    if format == "huggingface":
        write_text(folder / "README.md", card(encoder, run, found.model))
    return write_timm(found, encoder, folder)


def write_own(encoder: Encoder, path: Path) -> Check:
    """Write this package's own file, or both into a folder; load and compare."""
    (files.save_encoder if path.is_dir() else files.write)(encoder, path)
    net = None
    if not encoder.info.from_a_library:  # only its author can build it anew, so an emptied copy stands in
        net = copy.deepcopy(encoder.net)
        for value in net.state_dict().values():
            value.zero_()
    return compared(encoder, "byol", load_encoder(path, net=net).network)


def checked_format(path: Path, format: Format | None) -> Format:
    """The chosen format, or what a path's suffix means. Raises ConfigError when they do not go together."""
    folder = os.path.isdir(path)
    if format is None:
        fitting = [kind for kind, suffixes in SUFFIXES.items() if path.suffix in suffixes]
        if not (folder or fitting):
            raise ConfigError(
                f"{path} ends in {path.suffix}; expected .safetensors, .pth (torchvision), .pt2, .onnx, or "
                f"no suffix for a folder. Or give the format: {', '.join(SUFFIXES)}."
            )
        format = "huggingface" if folder else fitting[0]
    elif format not in SUFFIXES:
        hint = did_you_mean(format, SUFFIXES)
        raise ConfigError(f"There is no format {format!r}.{hint} There are: {', '.join(SUFFIXES)}.")
    elif format in FOLDERS and path.suffix in (".safetensors", ".pth", ".pt2", ".onnx", ".pt", ".bin"):
        raise ConfigError(f"{path} ends in {path.suffix}, but {format} is a folder. Leave the suffix out.")
    elif format not in FOLDERS and path.suffix not in SUFFIXES[format]:
        ends = " or ".join(SUFFIXES[format])
        raise ConfigError(f"{path} is not a name for {format}; expected one that ends in {ends}.")
    if not os.path.isdir(path.parent):
        raise ConfigError(f"{path} cannot be written: there is no folder {path.parent}. Make it first.")
    if format in FOLDERS and os.path.exists(path) and (not folder or any(path.iterdir())):
        raise ConfigError(f"{path} is there already and not an empty folder. Give the name of a new one.")
    if format not in FOLDERS and folder:
        raise ConfigError(f"{path} is a folder. Give the name of a file for {format}.")
    if format == "torchvision" and path.name == files.FILE and os.path.exists(path):
        raise ConfigError(f"{path} is an encoder of this package, which would be lost. Give another name.")
    return format

"""An encoder for other tools. Every export is loaded by its tool, and compared, before it appears."""

import copy
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch

from byol.disk import filling, replacing, write_text
from byol.encoders import encoder as files
from byol.encoders.encoder import Encoder
from byol.encoders.load import load_encoder
from byol.errors import ByolError, ConfigError, did_you_mean
from byol.exports.card import card
from byol.exports.graphs import write_graph
from byol.exports.layouts import DoesNotFit, fitted, write_timm, write_torchvision
from byol.exports.verify import Check, compared
from byol.features.embed import check_encoder

Format = Literal["safetensors", "torchvision", "timm", "huggingface", "torch.export", "onnx"]
FORMATS: tuple[Format, ...] = get_args(Format)
FOLDERS = ("timm", "huggingface")
GRAPHS = ("torch.export", "onnx")
MEANT: dict[str, Format] = {  # by a path's suffix
    ".safetensors": "safetensors",
    ".pth": "torchvision",
    ".pt2": "torch.export",
    ".onnx": "onnx",
    "": "huggingface",
}


@dataclass(frozen=True)
class Exported:
    """What was written, and how near the tool it is for comes to the encoder."""

    path: Path
    format: Format
    check: Check


def export(
    encoder: Encoder,
    path: str | Path,
    *,
    format: Format | None = None,
    from_pixels: bool = True,
    run: str | Path | None = None,
    model: str | None = None,
) -> Exported:
    """Write an encoder for another tool, load it there, compare the features, and only then let the
    file appear.

    - "safetensors": this package's own encoder file.
    - "torchvision": tensors by torchvision's names, without the classifier; .safetensors or .pth.
    - "timm": a folder for `timm.create_model("local-dir:...")`, with its preprocessing.
    - "huggingface": the same with a model card; or this package's own file, where timm has no such model.
    - "torch.export" (.pt2), "onnx": the graph from "images" (B, C, H, W) float32 to "representation" (B, D)
      float32, for any B. Pixels are in [0, 1], normalised by the graph, or beforehand with from_pixels=False.

    `format` follows from the path's suffix when it is None; a path without one is a folder for
    huggingface. `run` is the folder of the run, of which the model card tells. `model` names the model
    of torchvision or timm that an encoder of your own is. Raises ConfigError for what cannot be, and
    ByolError when the features differ by more than 1e-4 of the largest; then nothing is left behind.
    """
    check_encoder(encoder)
    path = Path(path)
    format = format_of(path, format)
    if not from_pixels and format not in GRAPHS:
        raise ConfigError(
            f"from_pixels=False is for onnx and torch.export; {format} never normalises images."
        )
    if model is not None and format in ("safetensors", *GRAPHS):
        raise ConfigError(
            f"model={model!r} is for torchvision, timm and huggingface; {format} takes any network as it is."
        )
    check_place(path, format)
    encoder = copy.deepcopy(encoder).to(torch.device("cpu")).to(memory_format=torch.contiguous_format).eval()
    place = filling if format in FOLDERS else replacing
    with torch.random.fork_rng([]), place(path) as temporary:  # the caller's random state stays as it was
        check = write(encoder, temporary, format, from_pixels, None if run is None else Path(run), model)
        if not check.agrees:
            raise ByolError(f"{check.tool} gives {check}; the export was deleted.")
        if path.suffix == ".pth":  # holds tensors and nothing else
            described = {"model": model or encoder.info.architecture, **encoder.info.preprocessing()}
            write_text(path.with_name(f"{path.name}.json"), json.dumps(described, indent=1) + "\n")
    return Exported(path, format, check)


def write(
    encoder: Encoder, path: Path, format: Format, from_pixels: bool, run: Path | None, model: str | None
) -> Check:
    """Write an encoder on the CPU to a file, or into an empty folder, and load and compare it."""
    if format in GRAPHS:
        return write_graph(encoder, path, format, from_pixels)
    if format == "torchvision":
        return write_torchvision(fitted(encoder, format, model), encoder, path)
    if format == "safetensors":
        files.write(encoder, path)
        return check_own(encoder, path)
    try:
        found = fitted(encoder, "timm", model)
    except DoesNotFit:
        if model is not None or format == "timm":
            raise
        files.save_encoder(encoder, path)
        write_text(path / "README.md", card(encoder, run, None))
        return check_own(encoder, path)
    if format == "huggingface":
        write_text(path / "README.md", card(encoder, run, found.model))
    return write_timm(found, encoder, path)


def check_own(encoder: Encoder, path: Path) -> Check:
    """Load this package's own file and compare."""
    net = None
    if not encoder.info.from_a_library:  # only its author can build it anew, so an emptied copy stands in
        net = copy.deepcopy(encoder.net)
        for value in net.state_dict().values():
            value.zero_()
    return compared(encoder, "byol", load_encoder(path, net=net).network)


def format_of(path: Path, format: Format | None) -> Format:
    """The format that a path means, or the chosen one. Raises ConfigError unless they go together."""
    if format is None:
        meant = "huggingface" if os.path.isdir(path) else MEANT.get(path.suffix)
        if meant is None:
            raise ConfigError(
                f"{path} ends in {path.suffix}; expected .safetensors, .pth (torchvision), .pt2, .onnx, or "
                f"no suffix for a folder. Or give the format: {', '.join(FORMATS)}."
            )
        return meant
    if format not in FORMATS:
        raise ConfigError(
            f"There is no format {format!r}.{did_you_mean(format, FORMATS)} There are: {', '.join(FORMATS)}."
        )
    if format in FOLDERS:
        if path.suffix in (*MEANT, ".pt", ".bin") and path.suffix:
            raise ConfigError(
                f"{path} ends in {path.suffix}, but {format} is a folder. Give a name without a suffix."
            )
        return format
    suffixes = [suffix for suffix, meant in MEANT.items() if meant == format]
    suffixes += [".safetensors"] if format == "torchvision" else []
    if path.suffix not in suffixes:
        raise ConfigError(
            f"{path} is not a name for {format}; expected one that ends in {' or '.join(suffixes)}."
        )
    return format


def check_place(path: Path, format: Format) -> None:
    """Raise ConfigError before any work when nothing can be written to a path."""
    if not os.path.isdir(path.parent):
        raise ConfigError(f"{path} cannot be written: there is no folder {path.parent}. Make it first.")
    if format in FOLDERS:
        if os.path.exists(path) and (not os.path.isdir(path) or any(path.iterdir())):
            raise ConfigError(f"{path} is there already and not an empty folder. Give the name of a new one.")
    elif os.path.isdir(path):
        raise ConfigError(f"{path} is a folder. Give the name of a file for {format}.")
    elif format == "torchvision" and path.name == files.FILE and os.path.exists(path):
        raise ConfigError(f"{path} is an encoder of this package, which would be lost. Give another name.")

"""`byol export`"""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import tyro

from byol.encoders.encoder import Encoder
from byol.encoders.load import folder_of, load_encoder
from byol.errors import ConfigError, show
from byol.evaluation.classifier import Classifier, holds_classifier, load_classifier
from byol.exports.export import GRAPHS, Format, export as write_export
from byol.exports.graphs import OUTPUT, PROBABILITIES
from byol.exports.verify import BATCHES, TOLERANCE
from byol.settings import parse

SHOWN = 12  # names of classes
LOADS = {
    "onnxruntime": 'onnxruntime.InferenceSession("{path}").run(["{output}"], {{"images": images}})',
    "torch.export": 'torch.export.load("{path}").module()(images)',
    "torchvision": 'net = torchvision.models.{model}(); net.load_state_dict({read}("{path}"), strict=False)',
    "timm": 'timm.create_model("local-dir:{path}", pretrained=True, num_classes=0)',
    "byol": 'byol.load_encoder("{path}")',
}


@dataclass(frozen=True)
class Export:
    run: tyro.conf.Positional[str]
    """Run folder, encoder.safetensors, official .pkl, pretrained torchvision:NAME or timm:NAME; or what
    `byol evaluate ... --save-classifier FILE` wrote, exported with its classifier."""
    out: str
    """What to write: .onnx, .pt2 (torch.export), .pth (torchvision), .safetensors, or a folder."""
    format: Format | None = None
    """By default what the suffix of --out means."""
    from_pixels: bool = True
    """Whether a graph takes pixels in [0, 1] and normalises them; with False, normalised pixels."""
    model: str | None = None
    """The torchvision or timm model that a network of your own is, such as resnet50."""
    encoder: str | None = None
    """package.module:function that builds the network, for a run that trained one of your own."""
    weights: str | None = None
    """File of a torchvision: or timm: network's tensors; by default what the library has downloaded."""


def export(arguments: Sequence[str]) -> int:
    """Write an encoder for another tool and say how near that tool comes to it."""
    description = "Write the encoder for other tools: loaded there and compared before it appears."
    command = parse(Export, arguments, prog="byol export", description=description)
    for source in (command.run, command.weights or ""):
        if os.path.isfile(source) and os.path.exists(command.out) and os.path.samefile(source, command.out):
            raise ConfigError(f"--out is {command.out}, which the encoder comes from. Give another name.")
    exported: Encoder | Classifier
    if holds_classifier(command.run):
        exported = load_classifier(command.run, net=command.encoder)
        encoder, output = exported.encoder, PROBABILITIES
    else:
        encoder, output = load_encoder(command.run, net=command.encoder, weights=command.weights), OUTPUT
        exported = encoder
    done = write_export(
        exported,
        command.out,
        format=command.format,
        from_pixels=command.from_pixels,
        run=folder_of(command.run),
        model=command.model,
    )
    tool, sizes = done.check.tool, " and ".join(f"{height}x{width}" for height, width in done.check.sizes)
    show(f"written    {done.path} ({done.format})")
    batches = ", ".join(map(str, BATCHES))
    show(f"checked    {tool} gives the same {done.check.what} for {batches} images of {sizes} pixels:")
    show(f"           they differ by {done.check.difference:.2g} of the largest ({TOLERANCE:g} is allowed)")
    if done.format in GRAPHS:
        pixels = "in [0, 1]" if command.from_pixels else "normalised"
        size = "H, W" if len(done.check.sizes) > 1 else "{}, {}".format(*encoder.info.image_size)
        show(f"takes      images float32 (B, {encoder.info.channels}, {size}) {pixels}")
        if isinstance(exported, Classifier):
            names = ", ".join(exported.classes[:SHOWN])
            more = ", ..." if len(exported.classes) > SHOWN else ""
            show(f"gives      probabilities float32 (B, {len(exported.classes)}): {names}{more}")
    if done.format == "huggingface" and tool == "byol":
        show("note       neither timm nor transformers has this network: the folder is for byol alone")
    model = (command.model or encoder.info.architecture or "").rpartition(":")[2]
    read = "torch.load" if done.path.suffix == ".pth" else "safetensors.torch.load_file"
    show(f"load       {LOADS[tool].format(path=done.path, read=read, model=model, output=output)}")
    return 0

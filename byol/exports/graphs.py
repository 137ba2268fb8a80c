"""The encoder as a graph: torch.export and ONNX, for any number of images and any size the network takes."""

import copy
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from byol.disk import by_way_of_memory
from byol.encoders.encoder import Encoder
from byol.errors import ByolError, ConfigError, library
from byol.evaluation.classifier import Classifier, KnnClassifier
from byol.exports.verify import Check, compared
from byol.features.features import unit
from byol.method.crops import Size
from byol.models.convnet import products

INPUT, OUTPUT = "images", "representation"
PROBABILITIES = "probabilities"  # what the graph of a classifier gives in its place
PROTOBUF_LIMIT = 2**31  # bytes in one ONNX file
KEY = "preprocessing"  # where a graph's file keeps what it expects of its images


class NoGraph(ConfigError):
    """A network that torch or ONNX cannot express as a graph."""


class Graph(nn.Module):
    """What is traced: images (B, C, H, W) float32 to the representation (B, D) float32.

    `from_pixels` puts the normalisation of pixels in [0, 1] in front. The encoder is copied. With a
    classifier behind it the probabilities (B, classes) come out.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, encoder: Encoder, from_pixels: bool, classifier: Classifier | None) -> None:
        super().__init__()
        last = nn.Identity() if classifier is None else classifier.of_features
        self.last = Votes(last) if isinstance(last, KnnClassifier) else last
        self.encoder = copy.deepcopy(encoder.network)
        self.encoder.stops = False
        self.from_pixels = from_pixels
        for name, part in list(self.encoder.named_modules()):
            if isinstance(part, nn.AdaptiveAvgPool2d):
                size = part.output_size
                rows, columns = size if isinstance(size, tuple) else (size, size)
                if rows and columns and rows * columns > 1:  # every tool has the average over the whole map
                    self.encoder.set_submodule(name, GridAverage(rows, columns))
        if from_pixels:
            self.register_buffer("mean", torch.tensor(encoder.info.mean).view(-1, 1, 1))
            self.register_buffer("std", torch.tensor(encoder.info.std).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        representation: Tensor = self.encoder((images - self.mean) / self.std if self.from_pixels else images)
        result: Tensor = self.last(representation)
        return result


class Votes(nn.Module):
    """A `KnnClassifier` of a few features, in operations that ONNX has."""

    bank: Tensor
    columns: Tensor

    def __init__(self, of_features: KnnClassifier) -> None:
        super().__init__()
        self.register_buffer("bank", unit(of_features.bank))
        self.register_buffer("columns", of_features.columns)
        self.k, self.temperature = min(of_features.k, len(of_features.bank)), of_features.temperature
        self.classes = int(of_features.columns.max()) + 1

    def forward(self, x: Tensor) -> Tensor:
        cosines, rows = (F.normalize(x, dim=1) @ self.bank.T).clamp(-1, 1).topk(self.k, dim=1)
        weights = ((cosines - cosines[:, :1]) / self.temperature).exp()
        votes = weights.new_zeros(x.shape[0], self.classes).scatter_add(1, self.columns[rows], weights)
        return votes / votes.sum(dim=1, keepdim=True)


class GridAverage(nn.Module):
    """`AdaptiveAvgPool2d` of a grid, in operations that ONNX has for every size of map."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.rows, self.columns = rows, columns

    def forward(self, x: Tensor) -> Tensor:
        return products(x, self.rows, self.columns)


def write_graph(
    encoder: Encoder, file: Path, format: str, from_pixels: bool, classifier: Classifier | None = None
) -> Check:
    """Write a graph of an encoder on the CPU, or of a classifier with it, load it again and compare it.

    The graph takes images of any size if it agrees at two of them, else of the encoder's size alone. Raises
    ConfigError when the network cannot be traced or a library is missing.
    """
    if format == "onnx":
        for name in ("onnx", "onnxscript", "onnxruntime"):
            library(name, "export")
        tensors = (encoder.net if classifier is None else classifier).state_dict().values()
        size = sum(value.numel() * value.element_size() for value in tensors)
        if size >= PROTOBUF_LIMIT:
            weights = f"{size / 2**30:.1f} GiB of weights"
            raise ConfigError(f"One ONNX file holds less than 2 GiB, not {weights}. Take torch.export.")
    own = height, width = encoder.info.image_size
    # Odd at every stride first: rounding is where tools differ. ViTs need multiples of their patch.
    others: tuple[Size, ...] = ((height + 33, width + 54), (height + 32, width + 64), (2 * height, 2 * width))
    if any("same" in type(part).__name__.lower() for part in encoder.net.modules()):
        others = ()  # with sizes left open, tracing layers that pad as TensorFlow's SAME does takes hours
    for other in others:
        try:
            with torch.no_grad():
                features = encoder.network(torch.rand(1, encoder.info.channels, *other))
        except Exception:  # a network of any kind, for one size only
            continue
        if features.shape == (1, encoder.info.features):
            with suppress(NoGraph):
                check = attempt(encoder, file, format, from_pixels, (own, other), classifier)
                if check.agrees:
                    return check
            break
    return attempt(encoder, file, format, from_pixels, (own,), classifier)


def attempt(
    encoder: Encoder,
    file: Path,
    format: str,
    from_pixels: bool,
    sizes: tuple[Size, ...],
    classifier: Classifier | None,
) -> Check:
    """Write a graph for one size, or any when there are two; raises NoGraph when it cannot be expressed."""
    any_size, output = len(sizes) > 1, OUTPUT if classifier is None else PROBABILITIES
    notes: dict[str, Any] = {"normalised_by_graph": from_pixels, "any_image_size": any_size}
    notes |= {} if classifier is None else {"classes": classifier.classes}
    described = json.dumps({**encoder.info.preprocessing(), **notes})
    run: Callable[[Tensor], Tensor]
    try:
        program = trace(Graph(encoder, from_pixels, classifier).eval(), encoder, any_size)
        if format == "onnx":
            write_onnx(program, file, described, any_size, output)
            session = library("onnxruntime").InferenceSession(file, providers=["CPUExecutionProvider"])
            tool = "onnxruntime"

            def run(images: Tensor) -> Tensor:
                return torch.from_numpy(session.run([output], {INPUT: images.numpy()})[0])
        else:
            with by_way_of_memory(file) as held:
                torch.export.save(program, held, extra_files={f"{KEY}.json": described})
            tool, run = "torch.export", torch.export.load(file).module()
        last = None if classifier is None else classifier.of_features
        return compared(encoder, tool, run, sizes, normalised=not from_pixels, of_features=last)
    except (ByolError, OSError):
        raise
    except Exception as failure:  # torch and ONNX raise nearly everything for what they lack
        reason = (str(failure) or type(failure).__name__).strip().splitlines()[0]
        raise NoGraph(
            f"{type(encoder.net).__name__} cannot be expressed as {format}: {reason}. "
            "Export it as safetensors or huggingface, which take any encoder."
        ) from failure


def trace(graph: Graph, encoder: Encoder, any_size: bool) -> torch.export.ExportedProgram:
    """The graph's program for any number of images and, with `any_size`, of any size the network takes."""
    example = torch.rand(2, encoder.info.channels, *encoder.info.image_size)
    axes: dict[int, Any] = {0: torch.export.Dim("batch", min=1)}
    if any_size:
        axes |= {2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    with torch.no_grad():
        program = torch.export.export(graph, (example,), dynamic_shapes={INPUT: axes})
        if encoder.info.hidden_layer is not None:
            program = program.run_decompositions({})  # drops what runs behind the layer
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine
    program.example_inputs = None
    return program


def write_onnx(
    program: torch.export.ExportedProgram, file: Path, described: str, any_size: bool, output: str
) -> None:
    """Write a .onnx file, weights and all."""
    axes = {0: "batch", **({2: "height", 3: "width"} if any_size else {})}
    converted = torch.onnx.export(
        program, input_names=[INPUT], output_names=[output], dynamic_shapes={INPUT: axes}, dynamo=True,
        verbose=False,
    )  # fmt: skip
    assert converted is not None
    for node in converted.model.graph.all_nodes():
        node.metadata_props.clear()  # traces of this machine
    converted.model.metadata_props[KEY] = described
    converted.save(file, external_data=False)

"""The encoder as a graph: torch.export and ONNX, for any number of images, and any image size that the network takes."""

import copy
import io
import json
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from byol.encoders.encoder import Encoder
from byol.errors import ByolError, ConfigError
from byol.exports.verify import Check, Size, agrees, allowed_sizes, difference

INPUT, OUTPUT = "images", "representation"
PROTOBUF_LIMIT = 2**31  # bytes in one ONNX file
KEY = "preprocessing"  # where a graph's file keeps what it expects of its images

Answer = Callable[[Tensor], Tensor]


class NoGraph(ConfigError):
    """A network that torch or ONNX cannot express as a graph."""


class Graph(nn.Module):
    """What is traced: images (B, C, H, W) float32 to the representation (B, D) float32.

    `from_pixels` puts the normalisation of pixels in [0, 1] in front. The encoder is copied.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, encoder: Encoder, from_pixels: bool) -> None:
        super().__init__()
        self.encoder = copy.deepcopy(encoder.network)
        self.encoder.stops = False
        self.from_pixels = from_pixels
        for name, part in list(self.encoder.named_modules()):
            if isinstance(part, nn.AdaptiveAvgPool2d) and (grid := grid_of(part)) is not None:
                self.encoder.set_submodule(name, GridAverage(grid))
        if from_pixels:
            self.register_buffer("mean", torch.tensor(encoder.info.mean).view(-1, 1, 1))
            self.register_buffer("std", torch.tensor(encoder.info.std).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        representation: Tensor = self.encoder((images - self.mean) / self.std if self.from_pixels else images)
        return representation


class GridAverage(nn.Module):
    """`AdaptiveAvgPool2d` of a grid, in operations that ONNX has for every size of map."""

    def __init__(self, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = self.grid
        height, width = x.shape[-2:]
        # Round up by adding, not by negating: ONNX divides towards zero.
        rows_of = [x[..., i * height // rows : ((i + 1) * height + rows - 1) // rows, :] for i in range(rows)]
        x = torch.cat([part.mean(-2, keepdim=True) for part in rows_of], -2)
        columns_of = [
            x[..., i * width // columns : ((i + 1) * width + columns - 1) // columns] for i in range(columns)
        ]
        return torch.cat([part.mean(-1, keepdim=True) for part in columns_of], -1)


def grid_of(average: nn.AdaptiveAvgPool2d) -> tuple[int, int] | None:
    """The grid of an average over parts of the map; None for one over the whole map, which every tool has."""
    size = average.output_size
    rows, columns = size if isinstance(size, tuple) else (size, size)
    return (rows, columns) if rows and columns and (rows, columns) != (1, 1) else None


def write_graph(encoder: Encoder, file: Path, format: str, from_pixels: bool) -> Check:
    """Write a graph of an encoder on the CPU, load it again and compare it.

    The graph takes images of any size if it agrees at two of them, else of the encoder's size alone. Raises ConfigError when
    the network cannot be traced or a library is missing.
    """
    if format == "onnx":
        check_onnx(encoder)
    sizes = (encoder.info.image_size,) if pads_by_parity(encoder.net) else allowed_sizes(encoder)
    if len(sizes) > 1:
        with suppress(NoGraph):
            check = attempt(encoder, file, format, from_pixels, sizes)
            if agrees(check.difference):
                return check
    return attempt(encoder, file, format, from_pixels, sizes[:1])


def attempt(encoder: Encoder, file: Path, format: str, from_pixels: bool, sizes: tuple[Size, ...]) -> Check:
    """Write a graph for one size, or any when there are two; raises NoGraph when torch or ONNX cannot express it."""
    any_size = len(sizes) > 1
    described = {
        **encoder.info.preprocessing(),
        "normalised_by_graph": from_pixels,
        "any_image_size": any_size,
    }
    save, load, tool = (
        (save_onnx, load_onnx, "onnxruntime")
        if format == "onnx"
        else (save_program, load_program, "torch.export")
    )
    try:
        save(trace(Graph(encoder, from_pixels), encoder, any_size), file, described)
        return Check(tool, difference(encoder, load(file), sizes, normalised=not from_pixels), sizes)
    except (ByolError, OSError):
        raise
    except (
        Exception
    ) as failure:  # a foreign network: torch and ONNX raise nearly everything for what they lack
        reason = (str(failure) or type(failure).__name__).strip().splitlines()[0]
        raise NoGraph(
            f"{type(encoder.net).__name__} cannot be expressed as {format}: {reason}. "
            "Export it as safetensors or huggingface, which take any encoder."
        ) from failure


def pads_by_parity(net: nn.Module) -> bool:
    """Whether a layer pads as TensorFlow's SAME does: with sizes left open, tracing it takes hours."""
    return any("same" in type(part).__name__.lower() for part in net.modules())


def trace(graph: Graph, encoder: Encoder, any_size: bool) -> torch.export.ExportedProgram:
    """The graph's program for any number of images and, with `any_size`, images as far as the network allows."""
    example = torch.rand(2, encoder.info.channels, *encoder.info.image_size)
    axes: dict[int, Any] = {0: torch.export.Dim("batch", min=1)}
    if any_size:
        axes |= {2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    with torch.no_grad():
        program = torch.export.export(graph.eval(), (example,), dynamic_shapes={INPUT: axes})
        if encoder.info.hidden_layer is not None:
            program = program.run_decompositions({})  # drops what runs behind the layer
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine
    program.example_inputs = None
    return program


def save_program(program: torch.export.ExportedProgram, file: Path, described: dict[str, Any]) -> None:
    """Write a .pt2 file. By way of the memory: on a full disk torch itself would end the process."""
    held = io.BytesIO()
    torch.export.save(program, held, extra_files={f"{KEY}.json": json.dumps(described)})
    file.write_bytes(held.getbuffer())


def load_program(file: Path) -> Answer:
    """A .pt2 file as torch loads it."""
    return torch.export.load(file).module()


def save_onnx(program: torch.export.ExportedProgram, file: Path, described: dict[str, Any]) -> None:
    """Write a .onnx file, weights and all."""
    axes = {0: "batch", **({2: "height", 3: "width"} if described["any_image_size"] else {})}
    converted = torch.onnx.export(
        program,
        input_names=[INPUT],
        output_names=[OUTPUT],
        dynamic_shapes={INPUT: axes},
        dynamo=True,
        verbose=False,
    )
    assert converted is not None
    for node in converted.model.graph.all_nodes():
        node.metadata_props.clear()  # traces of this machine
    converted.model.metadata_props[KEY] = json.dumps(described)
    converted.save(file, external_data=False)


def load_onnx(file: Path) -> Answer:
    """A .onnx file as onnxruntime runs it."""
    session = import_module("onnxruntime").InferenceSession(file, providers=["CPUExecutionProvider"])

    def answer(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])

    return answer


def check_onnx(encoder: Encoder) -> None:
    """Raise ConfigError when ONNX's libraries are missing, or the encoder is too large for one file."""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        try:
            import_module(name)
        except ModuleNotFoundError as missing:
            if missing.name != name:
                raise
            raise ConfigError(
                f"ONNX needs {name}, which is not installed: pip install 'byol[export]'"
            ) from missing
    size = sum(value.numel() * value.element_size() for value in encoder.net.state_dict().values())
    if size >= PROTOBUF_LIMIT:
        raise ConfigError(
            f"The encoder has {size / 2**30:.1f} GiB of weights, and one ONNX file holds less than 2. Take torch.export."
        )

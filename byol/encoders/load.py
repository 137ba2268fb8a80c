"""Any encoder to start from: a finished run, an encoder file, an official checkpoint, a library's name."""

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook as when_buffer_is_registered,
    register_module_parameter_registration_hook as when_registered,
)
from torch.overrides import TorchFunctionMode

from byol.disk import from_home, opened_safetensors
from byol.encoders.convert import convert
from byol.encoders.encoder import (
    FILE,
    PLAN,
    Encoder,
    EncoderFile,
    EncoderInfo,
    device_of,
    fill,
    filled,
    read,
    ready,
)
from byol.encoders.foreign import kind_of, refuse_distributed
from byol.encoders.pretrained import pretrained_encoder
from byol.errors import ByolError, CheckpointError, ConfigError, complaint, damaged
from byol.method.draws import Stream, seed_of
from byol.method.hidden import OUTPUT
from byol.models.build import LIBRARIES, is_own_code
from byol.world import pick_device

LARGER = "it would be far larger than the tensors in the file"
EXPECTED = "expected a run's folder, an encoder.safetensors file or an official .pkl"


class OwnNetwork(CheckpointError):
    """An encoder file of a network that only the user's own code can build."""


def load_encoder(
    path: str | Path,
    *,
    net: nn.Module | str | None = None,
    weights: str | Path | None = None,
    device: str | None = "cpu",
) -> Encoder:
    """An encoder in eval mode: of a run's folder, an encoder.safetensors or an official checkpoint (.pkl).

    Also "torchvision:NAME" or "timm:NAME" with pretrained weights: those in the file `weights`, or by default
    those that the library has downloaded before. `net` is the network to fill, or its
    "package.module:function", when the run trained a module of your own: no file can make this program import
    code, only you can. Raises CheckpointError when the file is missing, damaged, of a newer version or does
    not fit, and ConfigError when the network cannot be built or has no such hidden layer.
    """
    if not str(path):
        raise CheckpointError("The path of the encoder is empty; expected a run's folder or an encoder file.")
    if (name := str(path)).startswith(LIBRARIES):
        if net is not None:
            raise ConfigError(f"{name} names its network: leave net (--encoder) out.")
        return pretrained_encoder(name, weights=weights, device=device)
    if weights is not None:
        raise ConfigError(f"weights ({weights}) go with torchvision:NAME or timm:NAME, not with {path}.")
    file = find(from_home(path))
    kind = "a description" if file.suffix == ".json" else kind_of(file)
    if kind in ("a description", "an array of numpy's"):
        raise CheckpointError(f"{file} is {kind}; {EXPECTED}.")
    if kind == "torch":
        raise CheckpointError(
            f"{file} is a torch checkpoint. Make an encoder of it first: byol convert {file} --out FOLDER."
        )
    if kind == "pickle":
        if net is not None:
            raise ConfigError(f"{file} is an official checkpoint, which tells its network: leave net out.")
        return convert(file).encoder.to(pick_device(device))
    return rebuilt(read(file), file, net, device)


def rebuilt(held: EncoderFile, file: Path, net: nn.Module | str | None, device: str | None) -> Encoder:
    """The encoder that a file holds; `net` is as in `load_encoder`."""
    if not isinstance(net, nn.Module):
        net = described(file, held.tensors, held.info) if net is None else held.info.build(net)
    return filled(net, held.tensors, held.info, file, pick_device(device))


def holds_encoder(file: Path) -> bool:
    """Whether a file is an encoder by itself, and not the weights of a library's network."""
    kind = kind_of(file)
    if kind.startswith("a safetensors file"):
        with suppress(SafetensorError, ValueError), opened_safetensors(file) as opened:
            return "byol" in (opened.metadata() or {})
    return kind != "torch"


def find(path: Path) -> Path:
    """The encoder file that a path means."""
    file = path / FILE if os.path.isdir(path) else path
    if os.path.isfile(file):
        return file
    if os.path.exists(path / PLAN):
        raise CheckpointError(
            f"The run in {path} has no encoder yet: it is not finished. Run the same `byol train` command "
            "again to continue it."
        )
    refuse_distributed(path)
    if os.path.exists(path / "config.json"):
        raise CheckpointError(f"{path} is a folder for timm, without {FILE}. Name the run it was made of.")
    raise CheckpointError(f"There is no encoder at {path}; {EXPECTED}, or torchvision:NAME or timm:NAME.")


def described(file: Path, tensors: Mapping[str, Tensor], info: EncoderInfo) -> nn.Module:
    """The network that an encoder file describes, if a library has it and it is no larger than the file.

    What a file says is not believed: the network is tried without memory first, and must fit.
    """
    name = info.architecture
    if name is None or is_own_code(name):
        what = "a module of your own" if name is None else f"{name!r}, code of your own"
        raise OwnNetwork(
            f"The encoder in {file} is {what}, which is not built because a file says so. Build it yourself: "
            "load_encoder(path, net=...), or --encoder package.module:function."
        )
    numbers = re.findall(r"(?<![.\d])\d+", json.dumps(info.options))
    if len(numbers) > 1000 or any(len(number) > 5 for number in numbers):
        raise damaged(file, f"describes {name} with options that it cannot have")
    try:
        with suppress(NotImplementedError), torch.device("meta"), NoDraws(), no_larger_than(tensors):
            fill(info.build(name), tensors, file)
        with no_larger_than(tensors):
            return info.build(name)
    except ByolError:
        raise
    except Exception as failure:  # options that nobody gave: a library raises nearly everything for them
        raise damaged(file, f"describes a network that cannot be built ({complaint(failure)})") from failure


class NoDraws(TorchFunctionMode):
    """Leaves weights without memory as they are: to draw them, torch would load its compiler for seconds."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return args[0] if func is Tensor.normal_ else func(*args, **(kwargs or {}))


class NoneLarger(TorchFunctionMode):
    """Raises ValueError where a tensor of more than so many numbers is made."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, Tensor) and made.numel() > self.most:
            raise ValueError(LARGER)
        return made


@contextmanager
def no_larger_than(tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Raise ValueError once a network is far larger than some tensors, before it takes memory.

    Its parameters count, buffers that no file holds, and each tensor that these are computed from.
    """
    count, numbers = 4 * len(tensors) + 1000, 4 * sum(t.numel() for t in tensors.values()) + 2**24

    def take(module: nn.Module, name: str, tensor: Tensor | None) -> None:
        nonlocal count, numbers
        count, numbers = count - 1, numbers - (0 if tensor is None else tensor.numel())
        if min(count, numbers) < 0:
            raise ValueError(LARGER)

    handles = when_registered(take), when_buffer_is_registered(take)
    try:
        with NoneLarger(numbers):
            yield
    finally:
        for handle in handles:
            handle.remove()


def untrained(encoder: Encoder, *, seed: int = 0, net: nn.Module | str | None = None) -> Encoder:
    """The same network with fresh weights that follow from the seed: what training has to beat.

    `net` is the fresh network, or for a network of your own its "package.module:function", as in
    `load_encoder`; a module is needed for every encoder that is one.
    """
    info = encoder.info
    if not isinstance(net, nn.Module):
        name = info.architecture if info.from_a_library else net
        if name is None:
            raise ConfigError(
                "The encoder is code of your own, so only you can build a fresh one: give net=..., or "
                "--encoder package.module:function."
            )
        with torch.random.fork_rng([]):
            # Of the CPU alone: torch.manual_seed reseeds all GPUs.
            torch.default_generator.manual_seed(seed_of(seed, Stream.ENCODER))
            net = info.build(name)
    return ready(net, info.hidden_layer or OUTPUT, info, device_of(encoder))


def folder_of(word: str) -> Path | None:
    """Where what belongs to an encoder is kept; a library's network has no such place."""
    path = Path(word)
    return None if word.startswith(LIBRARIES) else path if os.path.isdir(path) else path.parent

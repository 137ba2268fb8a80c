"""Official checkpoints (deepmind-research byol: checkpointing.py, networks.py), without jax, haiku or dill.

Such a file is a pickle of protocol 2 with the keys `experiment_state`, `step` and `rng`. The state holds the
parameters and the BatchNorm statistics of both networks, module name to arrays, in JAX's layouts.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite, prod
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from byol.encoders.pickles import Name, Stretch, read_pickle
from byol.errors import CheckpointError, ConfigError, damaged

Network = Literal["online", "target"]
Part = Literal["encoder", "projector", "predictor", "classifier"]
Shape = tuple[int, ...]

# What may be named in such a file: some functions, and the classes of these packages. None is imported.
NAMES = re.compile(
    r"numpy\.(ndarray|dtype|_?core\.multiarray\.(_reconstruct|scalar)|_?core\.numeric\._frombuffer)|"
    r"_codecs\.encode|collections\.OrderedDict|dill\._?dill\._create_(array|namedtuple)|"
    r"(byol|haiku|jax|jaxlib|optax|chex)(\.\w+)+"
)
FIELDS = ("online_params", "target_params", "online_state", "target_state", "opt_state")  # byol_experiment.py
HEAD_LAYERS = {"linear": "0", "batch_norm": "1", "linear_1": "3"}
STEM_LAYERS = {"initial_conv": "conv1", "initial_conv_1": "conv1", "initial_batchnorm": "bn1"}
BLOCK_LAYERS = {"shortcut_conv": "downsample.0", "shortcut_batchnorm": "downsample.1"}
BLOCK_LAYERS |= {f"conv_{k}": f"conv{k + 1}" for k in range(3)}
BLOCK_LAYERS |= {f"batchnorm_{k}": f"bn{k + 1}" for k in range(3)}
PARAMETERS = {"w": "weight", "b": "bias", "scale": "weight", "offset": "bias"}
STATISTICS = {"mean_ema": "running_mean", "var_ema": "running_var"}


@dataclass(eq=False, slots=True)
class Made:
    """What calling something in the file would give."""

    name: str
    arguments: tuple[Any, ...]
    state: Any = None  # what it would be handed afterwards


@dataclass(frozen=True, eq=False)
class Array:
    """An array that is still in the file."""

    shape: Shape
    dtype: np.dtype[Any]
    fortran: bool  # the first axis runs fastest
    data: str | bytes | bytearray | Stretch

    @property
    def nbytes(self) -> int:
        return self.dtype.itemsize * prod(self.shape)

    def read(self) -> np.ndarray[Any, Any]:
        """The array, read-only. Raises ValueError when its bytes do not fit its shape."""
        raw = self.data.encode("latin-1") if isinstance(self.data, str) else bytes(self.data)
        if len(raw) != self.nbytes:
            raise ValueError(f"an array {self.shape!s:.60} of {self.dtype} has {len(raw):,} bytes")
        values = np.frombuffer(raw, self.dtype)
        return values.reshape(self.shape[::-1]).T if self.fortran else values.reshape(self.shape)


@dataclass(frozen=True)
class OfficialCheckpoint:
    """What an official checkpoint holds. Only the tree has been read; `state` reads the tensors."""

    path: Path
    step: int  # optimizer steps done
    networks: Mapping[str, Mapping[str, Array]]  # online, target: by our names, "encoder.conv1.weight"

    def state(self, network: Network = "online", part: Part = "encoder") -> dict[str, Tensor]:
        """The state dict of one part in torch's layout: float32, and int64 for num_batches_tracked."""
        for value, known in ((network, get_args(Network)), (part, get_args(Part))):
            if value not in known:
                raise ConfigError(f"An official checkpoint has no {value!r}; expected {' or '.join(known)}.")
        start = f"{part}."
        arrays = {n.removeprefix(start): a for n, a in self.networks[network].items() if n.startswith(start)}
        if not arrays:
            raise CheckpointError(f"{self.path} holds no {part} of the {network} network.")
        size, tensors = self.path.stat().st_size, {}
        if sum(array.nbytes for array in arrays.values()) > size:  # one stretch taken for many arrays
            raise damaged(self.path, f"is damaged: its arrays claim more bytes than its {size:,}")
        for name, array in arrays.items():
            kind = np.int64 if name.endswith("num_batches_tracked") else np.float32
            try:
                tensors[name] = torch.from_numpy(torch_layout(array.read()).astype(kind, order="C"))
            except ValueError as failure:
                raise damaged(self.path, f"is damaged at {name}: {failure}") from failure
        return tensors


def official_state(
    path: str | Path, network: Network = "online", part: Part = "encoder"
) -> dict[str, Tensor]:
    """The state dict of one part of an official checkpoint, for a module of yours; nothing in it is executed.

    `part` is "encoder" (torchvision's names), "projector" or "predictor" (a `BYOL` learner's, 0, 1 and 3), or
    "classifier", the linear probe that was trained along. Raises CheckpointError for any other file.
    """
    return read_official(path).state(network, part)


def read_official(path: str | Path) -> OfficialCheckpoint:
    """What an official checkpoint holds, without its tensors. Raises CheckpointError for anything else."""
    path = Path(path)
    try:
        contents = read_pickle(path, lambda name: NAMES.fullmatch(name) is not None, made)
    except OSError as failure:
        raise CheckpointError(f"{path} cannot be read ({failure.strerror}).") from failure
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as failure:
        raise damaged(path, "is cut off or damaged: it makes no sense as a pickle") from failure
    try:
        state = checked("it", contents, ("experiment_state", "step"))["experiment_state"]
        if isinstance(state, Made):  # of a class that is only named
            state = dict(zip(FIELDS, state.arguments, strict=True))
        checked("its state", state, FIELDS[:4])
        networks = {
            which: arrays_in(state[f"{which}_params"], state[f"{which}_state"]) for which in get_args(Network)
        }
        step = contents["step"]
        number = step if type(step) is int else array_in(step).read().item()
        if type(number) is float and not isfinite(number):
            raise ValueError(f"its number of steps is {number}")
        return OfficialCheckpoint(path, int(number), networks)
    except ValueError as failure:
        raise CheckpointError(
            f"{path} is a pickle, but not an official BYOL checkpoint of pretraining: {failure}. "
            "Expected a file such as pretrain_res50x1.pkl."
        ) from failure


def made(what: Any, arguments: tuple[Any, ...]) -> Any:
    """What a call in the file stands for: a dict, a string, or what would be made."""
    if isinstance(what, Made) and what.name.endswith("._create_namedtuple"):
        fields = what.arguments[1]  # between the name of the class and its module
        if not all(type(field) is str for field in fields):
            raise TypeError
        return dict(zip(fields, arguments, strict=True))
    if type(arguments) is not tuple or not isinstance(what, Name):
        raise TypeError
    name, first, state = what.text, arguments[0] if arguments else None, None
    if name == "collections.OrderedDict" and not arguments:
        return {}
    if name == "_codecs.encode" or (len(arguments) == 1 and type(first) is dict):
        return first  # bytes as text; Haiku's immutable mappings
    if name.endswith("._frombuffer"):  # numpy's in protocol 5
        data, dtype, shape, order = arguments
        state = (1, shape, dtype, order == "F", data)
    elif name.endswith(".scalar"):
        state = (1, (), *arguments[:1], False, *arguments[1:])
    elif isinstance(first, Name) and first.text.endswith("._reconstruct"):
        state = arguments[2]  # dill and jax hand over what numpy pickles
    return Made(name, arguments, state)


def layer_of(module: str) -> str | None:
    """Our name of a module: "res_net50/~/block_group_0/~/block_2/~/conv_1": "encoder.layer1.2.conv2"."""
    module = module.replace("/~", "")
    part, _, rest = module.partition("/")
    if module == "classifier":
        return module
    if part in ("projector", "predictor"):
        return f"{part}.{HEAD_LAYERS[rest]}" if rest in HEAD_LAYERS else None
    if rest in STEM_LAYERS:
        return f"encoder.{STEM_LAYERS[rest]}"
    found = re.fullmatch(r"block_group_([0-3])/block_([0-9]{1,3})/(\w+)", rest)
    if found is None or found[3] not in BLOCK_LAYERS:
        return None
    return f"encoder.layer{int(found[1]) + 1}.{int(found[2])}.{BLOCK_LAYERS[found[3]]}"


def torch_layout(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """HWIO to OIHW, (in, out) to (out, in), and a BatchNorm's (1, ..., 1, C) to (C,)."""
    if values.ndim > 1 and values.size == values.shape[-1]:
        return values.reshape(-1)
    return values.transpose(3, 2, 0, 1) if values.ndim == 4 else values.T


def arrays_in(parameters: Any, state: Any) -> dict[str, Array]:
    """A network's parameters and running statistics by our names. Raises ValueError for unknown parts."""
    parts = []  # module, what it is there, array
    for module, leaves in checked("a network", parameters).items():
        parts += [(module, leaf, value) for leaf, value in checked(module, leaves).items()]
    for module, leaves in checked("a network", state).items():
        owner, _, statistic = module.rpartition("/")
        values = checked(module, leaves, ("average", "counter"))
        parts += [(owner, statistic, values["average"]), (owner, "counter", values["counter"])]
    names = PARAMETERS | STATISTICS | {"counter": "num_batches_tracked"}
    unknown = [f"{module}/{leaf}" for module, leaf, _ in parts if not (layer_of(module) and leaf in names)]
    if unknown:
        raise ValueError(
            f"{len(unknown)} of its parts belong to no network that byol knows, such as {unknown[0][:200]!r}"
        )
    return {f"{layer_of(module)}.{names[leaf]}": array_in(value) for module, leaf, value in parts}


def checked(what: str, value: Any, needed: tuple[str, ...] = ()) -> dict[str, Any]:
    """A value that is a dict with some keys; raises ValueError for any other."""
    if type(value) is not dict:
        raise ValueError(f"a {type(value).__name__} stands where a mapping should be")
    missing = [name for name in needed if name not in value]
    if missing:
        has = ", ".join(value)[:200] or "none"
        raise ValueError(f"{what} has the keys {has}, and no {' or '.join(missing)}")
    return value


def array_in(value: Any) -> Array:
    """An array as numpy, dill or jax pickles it: all hand over (version, shape, dtype, fortran, data).

    The dtype is numpy.dtype("f4", False, True) with the state (3, "<", ...).
    """
    state = value.state if isinstance(value, Made) else None
    if type(state) is not tuple or len(state) != 5:
        raise ValueError(f"a {type(value).__name__} stands where an array should be")
    _, shape, dtype, fortran, data = state
    whole = type(shape) is tuple and all(type(side) is int and 0 <= side < 2**31 for side in shape)
    if not whole or not isinstance(data, str | bytes | bytearray | Stretch):
        raise ValueError("an array has no shape or no bytes")
    described = isinstance(dtype, Made) and dtype.name == "numpy.dtype" and dtype.arguments
    code = dtype.arguments[0] if described else None
    order = dtype.state[1] if described and type(dtype.state) is tuple and len(dtype.state) > 1 else "<"
    if code not in ("f2", "f4", "f8", "i4", "i8") or order not in ("<", ">"):
        raise ValueError("an array holds no numbers of the usual kinds (float16, 32, 64 or int32, 64)")
    return Array(shape, np.dtype(f"{order}{code}"), fortran is True, data)

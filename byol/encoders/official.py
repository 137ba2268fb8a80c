"""The official checkpoints (deepmind-research byol: checkpointing.py, networks.py), without jax, haiku or dill.

Such a file is a pickle of protocol 2 with the keys `experiment_state`, `step` and `rng`. The state holds the parameters and
the BatchNorm statistics of the online and the target network, module name to arrays, in JAX's layouts.
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

from byol.encoders.pickles import Made, Name, bytes_in, read_pickle
from byol.errors import CheckpointError, ConfigError

Network = Literal["online", "target"]
Part = Literal["encoder", "projector", "predictor", "classifier"]
Shape = tuple[int, ...]

# What may be named in such a file: some functions, and whatever these packages call their classes. None of it is imported.
NAMES = re.compile(
    r"numpy\.(ndarray|dtype|_?core\.multiarray\.(_reconstruct|scalar)|_?core\.numeric\._frombuffer)|_codecs\.encode|"
    r"collections\.OrderedDict|dill\._?dill\._create_(array|namedtuple)|(byol|haiku|jax|jaxlib|optax|chex)(\.\w+)+"
)
FIELDS = ("online_params", "target_params", "online_state", "target_state", "opt_state")  # byol_experiment.py
HEAD_LAYERS = {"linear": "0", "batch_norm": "1", "linear_1": "3"}
STEM_LAYERS = {"initial_conv": "conv1", "initial_conv_1": "conv1", "initial_batchnorm": "bn1"}
BLOCK_LAYERS = {"shortcut_conv": "downsample.0", "shortcut_batchnorm": "downsample.1"}
BLOCK_LAYERS |= {f"conv_{k}": f"conv{k + 1}" for k in range(3)} | {
    f"batchnorm_{k}": f"bn{k + 1}" for k in range(3)
}
PARAMETERS = {"w": "weight", "b": "bias", "scale": "weight", "offset": "bias"}
STATISTICS = {"mean_ema": "running_mean", "var_ema": "running_var"}


@dataclass(frozen=True, eq=False)
class Array:
    """An array that is still in the file."""

    shape: Shape
    dtype: np.dtype[Any]
    fortran: bool  # the first axis runs fastest
    data: Any  # of the pickle's tree; `bytes_in` reads it

    def read(self, file: Any) -> np.ndarray[Any, Any]:
        """The array, read-only. Raises ValueError when its bytes do not fit its shape."""
        raw = bytes_in(self.data, file)
        if len(raw) != self.nbytes:
            raise ValueError(f"an array {self.shape} of {self.dtype} has {len(raw):,} bytes")
        values = np.frombuffer(raw, self.dtype)
        return values.reshape(self.shape[::-1]).T if self.fortran else values.reshape(self.shape)

    @property
    def nbytes(self) -> int:
        return self.dtype.itemsize * prod(self.shape)


@dataclass(frozen=True)
class OfficialCheckpoint:
    """What an official checkpoint holds. Only the tree has been read; `state` reads the tensors it is asked for."""

    path: Path
    step: int  # optimizer steps done
    networks: Mapping[
        str, Mapping[str, Array]
    ]  # online, target: by our names, such as "encoder.layer1.0.conv1.weight"

    def shapes(self, network: Network = "online", part: Part = "encoder") -> dict[str, Shape]:
        """The shapes of the tensors that `state` gives."""
        return {name: torch_shape(array.shape) for name, array in self.arrays(network, part).items()}

    def state(self, network: Network = "online", part: Part = "encoder") -> dict[str, Tensor]:
        """The state dict of one part in torch's layout: float32, and int64 for num_batches_tracked."""
        arrays = self.arrays(network, part)
        size = self.path.stat().st_size
        if (
            sum(array.nbytes for array in arrays.values()) > size
        ):  # one stretch of the file taken for many arrays
            raise CheckpointError(
                f"{self.path} is damaged: its arrays claim more bytes than its {size:,}. Take another copy."
            )
        tensors = {}
        with self.path.open("rb") as file:
            for name, array in arrays.items():
                try:
                    values = array.read(file)
                except ValueError as failure:
                    raise CheckpointError(
                        f"{self.path} is damaged at {name}: {failure}. Take another copy."
                    ) from failure
                kind = np.int64 if name.endswith("num_batches_tracked") else np.float32
                tensors[name] = torch.from_numpy(torch_layout(values).astype(kind, order="C"))
        return tensors

    def arrays(self, network: Network, part: Part) -> dict[str, Array]:
        """The arrays of one part by the names of its own state dict."""
        for value, known in ((network, get_args(Network)), (part, get_args(Part))):
            if value not in known:
                raise ConfigError(
                    f"An official checkpoint has no {value!r}; expected one of {', '.join(known)}."
                )
        prefix = f"{part}."
        found = {
            name.removeprefix(prefix): a
            for name, a in self.networks[network].items()
            if name.startswith(prefix)
        }
        if not found:
            raise CheckpointError(f"{self.path} holds no {part} of the {network} network.")
        return found


def official_state(
    path: str | Path, network: Network = "online", part: Part = "encoder"
) -> dict[str, Tensor]:
    """The state dict of one part of an official checkpoint, to fill a module of yours; nothing in the file is executed.

    `part` is "encoder" (torchvision's names), "projector" or "predictor" (a `BYOL` learner's, 0, 1 and 3), or "classifier",
    the linear probe that was trained along. Raises CheckpointError for a file that is no official checkpoint.
    """
    return read_official(path).state(network, part)


def read_official(path: str | Path) -> OfficialCheckpoint:
    """What an official checkpoint holds, without its tensors. Raises CheckpointError for anything else."""
    path = Path(path)
    try:
        tree = read_pickle(path, lambda name: NAMES.fullmatch(name) is not None)
    except OSError as failure:
        raise CheckpointError(f"{path} cannot be read ({failure.strerror}).") from failure
    try:
        contents = mapping_in(tree)
        check_keys("it", contents, ("experiment_state", "step"))
        state = fields_in(contents["experiment_state"])
        check_keys("its state", state, FIELDS[:4])
        networks = {
            which: arrays_in(state[f"{which}_params"], state[f"{which}_state"]) for which in get_args(Network)
        }
        return OfficialCheckpoint(path, number_in(contents["step"], path), networks)
    except ValueError as failure:
        raise CheckpointError(
            f"{path} is a pickle, but no official BYOL checkpoint of pretraining: {failure}. Expected a file such as "
            "pretrain_res50x1.pkl."
        ) from failure


def layer_of(module: str) -> str | None:
    """Our name of a Haiku module: "res_net50/~/block_group_0/~/block_2/~/conv_1" is "encoder.layer1.2.conv2"."""
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
    if values.ndim == 4 and values.size != values.shape[-1]:
        return values.transpose(3, 2, 0, 1)
    return values.T.reshape(torch_shape(values.shape))


def torch_shape(shape: Shape) -> Shape:
    """The shape of what `torch_layout` gives."""
    if len(shape) > 1 and prod(shape) == shape[-1]:
        return shape[-1:]
    return (shape[3], shape[2], shape[0], shape[1]) if len(shape) == 4 else shape[::-1]


def arrays_in(parameters: Any, state: Any) -> dict[str, Array]:
    """A network's parameters and running statistics by our names. Raises ValueError for a part that no network has."""
    found, unknown = {}, []
    for module, leaves in mapping_in(parameters).items():
        layer = layer_of(module)
        for leaf, value in mapping_in(leaves).items():
            if layer is None or leaf not in PARAMETERS:
                unknown.append(f"{module} {leaf}")
            else:
                found[f"{layer}.{PARAMETERS[leaf]}"] = array_in(value)
    for module, leaves in mapping_in(state).items():
        owner, _, statistic = module.rpartition("/")
        layer, values = layer_of(owner), mapping_in(leaves)
        if layer is None or statistic not in STATISTICS or not {"average", "counter"} <= values.keys():
            unknown.append(module)
            continue
        found[f"{layer}.{STATISTICS[statistic]}"] = array_in(values["average"])
        found[f"{layer}.num_batches_tracked"] = array_in(values["counter"])
    if unknown:
        raise ValueError(
            f"{len(unknown)} of its parts belong to no network that byol knows, such as {unknown[0][:200]!r}"
        )
    return found


def check_keys(what: str, found: Mapping[str, Any], needed: tuple[str, ...]) -> None:
    """Raise ValueError unless all keys are there."""
    missing = [name for name in needed if name not in found]
    if missing:
        raise ValueError(
            f"{what} has the keys {', '.join(found)[:200] or 'none'}, and no {' or '.join(missing)}"
        )


def mapping_in(value: Any) -> dict[str, Any]:
    """The dict in a dict, in one of Haiku's immutable mappings (made from a dict) or in an OrderedDict."""
    parts = (value.items, *value.arguments) if isinstance(value, Made) else (value,)
    for part in parts:
        if type(part) is dict:
            return part
    raise ValueError(f"a {type(value).__name__} stands where a mapping should be")


def fields_in(value: Any) -> dict[str, Any]:
    """The fields of a named tuple: by the names in the file, or in the official order when the class is only named."""
    if not isinstance(value, Made):
        return mapping_in(value)
    named = (
        value.what.arguments[1:2] if isinstance(value.what, Made) else (FIELDS,)
    )  # (class name, field names, module)
    if not named or type(named[0]) is not tuple or not all(type(name) is str for name in named[0]):
        raise ValueError("its state is no named tuple")
    return dict(zip(named[0], value.arguments, strict=True))


def array_in(value: Any) -> Array:
    """An array as numpy, dill or jax pickles it: all hand over numpy's own (version, shape, dtype, fortran, data)."""
    state, arguments = None, value.arguments if isinstance(value, Made) else ()
    if called(value).endswith("._frombuffer") and len(arguments) == 4:  # numpy's in protocol 5
        state = (1, arguments[2], arguments[1], arguments[3] == "F", arguments[0])
    elif called(value).endswith("._reconstruct"):
        state = value.state
    elif (
        len(arguments) > 2 and isinstance(arguments[0], Name) and arguments[0].text.endswith("._reconstruct")
    ):
        state = arguments[2]
    if type(state) is not tuple or len(state) != 5:
        raise ValueError(f"a {type(value).__name__} stands where an array should be")
    _, shape, dtype, fortran, data = state
    if type(shape) is not tuple or not all(type(side) is int and side >= 0 for side in shape):
        raise ValueError("an array has no shape")
    return Array(shape, dtype_in(dtype), fortran is True, data)


def dtype_in(value: Any) -> np.dtype[Any]:
    """numpy.dtype("f4", False, True) with the state (3, "<", ...)."""
    code = value.arguments[0] if called(value) == "numpy.dtype" and value.arguments else None
    order = (
        value.state[1]
        if called(value) == "numpy.dtype" and type(value.state) is tuple and len(value.state) > 1
        else "<"
    )
    if code not in ("f2", "f4", "f8", "i4", "i8") or order not in ("<", ">"):
        raise ValueError("an array holds no numbers of the usual kinds (float16, 32, 64 or int32, 64)")
    return np.dtype(f"{order}{code}")


def number_in(value: Any, path: Path) -> int:
    """A whole number, whether plain, numpy's scalar or an array of one."""
    if type(value) is int:
        return value
    if called(value).endswith(".scalar") and len(value.arguments) == 2:
        array = Array((), dtype_in(value.arguments[0]), False, value.arguments[1])
    else:
        array = array_in(value)
    with path.open("rb") as file:
        number = array.read(file).item()
    if not isfinite(number):
        raise ValueError(f"its number of steps is {number}")
    return int(number)


def called(value: Any) -> str:
    """The full name of what would be called to make a value, "" for values that are there."""
    return value.what.text if isinstance(value, Made) and isinstance(value.what, Name) else ""

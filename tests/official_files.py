"""Pickles with the names and layouts of the official checkpoints, of any size, pickled in any way."""

import pickle
import sys
from collections import namedtuple
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

BLOCKS = {"res_net50": (3, 4, 6, 3), "res_net200": (3, 24, 36, 3)}
Network = tuple[dict[str, Any], dict[str, Any]]  # parameters and state: module -> name -> array


def haiku_network(
    root: str = "res_net50",
    blocks: tuple[int, ...] | None = None,
    *,
    width: float = 1 / 16,  # 1 is the released ResNet-50's
    hidden: int = 32,
    stem: str = "initial_conv",
    seed: int = 0,
) -> Network:
    """The parameters and state of an official network, as networks.py names and shapes them."""
    draw = np.random.default_rng(seed)
    parameters: dict[str, Any] = {}
    state: dict[str, Any] = {}

    def array(*shape: int) -> np.ndarray:
        return draw.standard_normal(shape, dtype=np.float32) / 10

    def batch_norm(name: str, *shape: int) -> None:
        parameters[name] = {"scale": array(*shape) + 1, "offset": array(*shape)}
        for statistic in ("mean_ema", "var_ema"):
            value = np.abs(array(*shape)) + (statistic == "var_ema")
            state[f"{name}/~/{statistic}"] = {
                "average": value,
                "hidden": value.copy(),
                "counter": np.array(7, np.int32),
            }

    channels = round(64 * width)
    parameters[f"{root}/~/{stem}"] = {"w": array(7, 7, 3, channels)}
    batch_norm(f"{root}/~/initial_batchnorm", 1, 1, 1, channels)
    for group, count in enumerate(blocks or BLOCKS[root]):
        middle = round(64 * width) * 2**group
        for block in range(count):
            name = f"{root}/~/block_group_{group}/~/block_{block}/~"
            for k, shape in enumerate(
                [(1, 1, channels, middle), (3, 3, middle, middle), (1, 1, middle, 4 * middle)]
            ):
                parameters[f"{name}/conv_{k}"] = {"w": array(*shape)}
                batch_norm(f"{name}/batchnorm_{k}", 1, 1, 1, shape[-1])
            if block == 0:
                parameters[f"{name}/shortcut_conv"] = {"w": array(1, 1, channels, 4 * middle)}
                batch_norm(f"{name}/shortcut_batchnorm", 1, 1, 1, 4 * middle)
            channels = 4 * middle
    for head, size in (("projector", channels), ("predictor", 256)):
        parameters[f"{head}/linear"] = {"w": array(size, hidden), "b": array(hidden)}
        batch_norm(f"{head}/batch_norm", 1, hidden)
        parameters[f"{head}/linear_1"] = {"w": array(hidden, 256)}
    parameters["classifier"] = {"w": array(channels, 1000), "b": array(1000)}
    return parameters, state


class _Mapping:
    """Pickles as Haiku's immutable mappings do: the class, called with a dict."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.values = values

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.values,)


@contextmanager
def importable(modules: dict[str, dict[str, Any]]) -> Iterator[None]:
    """Modules that exist for a while, because pickling a class looks it up."""
    before = dict(sys.modules)
    for name, contents in modules.items():
        for dot in range(name.count(".") + 1):
            package = name.rsplit(".", dot)[0]
            sys.modules.setdefault(package, ModuleType(package))
        vars(sys.modules[name]).update(contents)
    try:
        yield
    finally:
        for name in sys.modules.keys() - before.keys():
            del sys.modules[name]


def write_official(
    path: Path,
    online: Network,
    target: Network | None = None,
    *,
    protocol: int = 2,
    mapping: str | None = None,  # of Haiku: FlatMapping, frozendict; None for dicts
    **more: Any,
) -> Path:
    """A checkpoint whose state is a named tuple of a class that is only named."""
    home, state_home = "haiku._src.data_structures", "byol.byol_experiment"
    kind = type(mapping or "none", (_Mapping,), {"__module__": home, "__qualname__": mapping or "none"})
    state = namedtuple(
        "_ByolExperimentState", "online_params target_params online_state target_state opt_state"
    )
    state.__module__ = state_home

    def wrapped(tree: dict[str, Any]) -> Any:
        return kind({name: kind(leaves) for name, leaves in tree.items()}) if mapping else tree

    (parameters, statistics), (others, their_statistics) = online, target or online
    filled = state(
        wrapped(parameters), wrapped(others), wrapped(statistics), wrapped(their_statistics), ((), parameters)
    )
    contents = {"experiment_state": filled, "step": 300_000, "rng": np.zeros(2, np.uint32), **more}
    with importable({home: {kind.__name__: kind}, state_home: {state.__name__: state}}):
        path.write_bytes(pickle.dumps(contents, protocol))
    return path

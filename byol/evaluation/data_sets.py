"""Transfer (paper §4.3, Table 3): one encoder on a list of data sets, each with its metric."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from byol.disk import read_yaml
from byol.errors import ConfigError, did_you_mean
from byol.evaluation.metrics import METRICS


@dataclass(frozen=True)
class DataSet:
    """Labelled images to learn from and to score on."""

    name: str
    train: Any
    test: Any
    metric: str | None = None  # None: the usual one for the labels


def read_data_sets(path: str | Path) -> list[DataSet]:
    """The data sets that a YAML file names: `NAME: {train: PATH, test: PATH, metric: METRIC}`, paths relative to the file.

    Raises ConfigError when the file is missing or holds something else.
    """
    path = Path(path)
    held = read_yaml(path, "list of data sets")
    if not isinstance(held, dict) or not held:
        raise ConfigError(
            f"{path} names no data sets; expected lines such as `pets: {{train: pets/train, test: pets/test}}`."
        )
    return [data_set(str(name), values, path) for name, values in held.items()]


def data_set(name: str, values: Any, path: Path) -> DataSet:
    """One entry of the list."""
    if not isinstance(values, Mapping) or not all(
        isinstance(values.get(side), str) for side in ("train", "test")
    ):
        raise ConfigError(
            f"{name} in {path} is {values!r}; expected {{train: PATH, test: PATH}} and perhaps a metric."
        )
    known = ("train", "test", "metric")
    for key in values:
        if key not in known:
            raise ConfigError(
                f"{name} in {path} has the key {key!r}.{did_you_mean(str(key), known)} Expected train, test and metric."
            )
    metric = values.get("metric")
    if metric is not None and metric not in METRICS:
        raise ConfigError(
            f"{name} in {path} has the metric {metric!r}. Expected one of {', '.join(METRICS)}."
        )
    return DataSet(name, str(path.parent / values["train"]), str(path.parent / values["test"]), metric)

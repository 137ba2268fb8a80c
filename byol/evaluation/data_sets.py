"""Transfer (paper §4.3, Table 3): one encoder on a list of data sets, each with its metric."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from byol.disk import read_yaml
from byol.errors import ConfigError, did_you_mean, printable
from byol.evaluation.metrics import METRICS


@dataclass(frozen=True)
class DataSet:
    """Labelled images to learn from and to score on."""

    name: str
    train: Any
    test: Any
    metric: str | None = None  # None: the usual one for the labels


def read_data_sets(path: str | Path) -> list[DataSet]:
    """The data sets in a YAML file: `NAME: {train: PATH, test: PATH, metric: METRIC}`, paths relative to it.

    A number as `test` scores this share of the training images instead. This is transfer (paper §4.3,
    Table 3). Raises ConfigError when the file holds something else.
    """
    path = Path(path)
    held = read_yaml(path, "list of data sets")
    if not isinstance(held, dict) or not held:
        raise ConfigError(f"{path} names no data sets; expected lines such as `pets: {{train: a, test: b}}`.")
    sets = []
    for key, values in held.items():
        name, known = printable(str(key)), ("train", "test", "metric")
        given: dict[str, Any] = {word: values.get(word) for word in known} if isinstance(values, dict) else {}
        unknown = [str(word) for word in values if word not in known] if given else []
        paths = isinstance(given.get("train"), str) and isinstance(given.get("test"), str | float)
        if unknown or not paths or given["metric"] not in (None, *METRICS):
            meant = did_you_mean(unknown[0], known) if unknown else ""
            raise ConfigError(
                f"{name} in {path} is {printable(str(values))}.{meant} Expected {{train: PATH, test: PATH}}, "
                f"and perhaps a metric, one of {', '.join(METRICS)}."
            )
        train, test = (
            str(path.parent / place) if isinstance(place, str) else place
            for place in (given["train"], given["test"])
        )
        sets.append(DataSet(name, train, test, given["metric"]))
    return sets

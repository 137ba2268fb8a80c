"""Settings as dataclasses, as YAML, and as command-line flags: one parser reads them all."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from byol.errors import ConfigError, did_you_mean

T = TypeVar("T")
PRESETS = Path(__file__).parent / "presets"


def to_plain(config: Any) -> dict[str, Any]:
    """A dataclass as nested plain values, ready for YAML and JSON."""
    plain: dict[str, Any] = _listed(dataclasses.asdict(config))
    return plain


def _listed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _listed(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_listed(part) for part in value]
    return value


def to_yaml(config: Any) -> str:
    """A dataclass as YAML text."""
    import yaml

    return yaml.safe_dump(to_plain(config), sort_keys=False)


def differences(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    """What changed between two plain configs, one 'name: before -> now' each."""
    changed = []
    for name in dict.fromkeys([*before, *now]):
        old, new = before.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            changed += differences(old, new, f"{prefix}{name}.")
        elif old != new:
            changed.append(f"{prefix}{name}: {old} -> {new}")
    return changed


def preset_names() -> list[str]:
    """The presets that come with the package."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def preset_flags(preset: str) -> list[str]:
    """A preset (a shipped one's name, or the path of a YAML file) as the flags it stands for."""
    path = PRESETS / f"{preset}.yaml"
    if preset.endswith((".yaml", ".yml")):
        path = Path(preset)
    elif not path.exists():
        raise ConfigError(
            f"There is no preset {preset!r}.{did_you_mean(preset, preset_names())} There are: {', '.join(preset_names())}."
        )
    import yaml

    try:
        values = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as failure:
        raise ConfigError(f"The preset file {path} cannot be read: {failure}") from failure
    if not isinstance(values, dict):
        raise ConfigError(
            f"The preset file {path} holds a {type(values).__name__}; expected names and values, as in config.yaml."
        )
    return flags_of(values)


def flags_of(values: dict[str, Any], prefix: str = "") -> list[str]:
    """Nested plain values as command-line flags; what is None is left out."""
    flags: list[str] = []
    for name, value in values.items():
        flag = f"--{prefix}{name}".replace("_", "-")
        if isinstance(value, dict):
            flags += flags_of(value, f"{prefix}{name}.")
        elif isinstance(value, list):
            flags += [flag, *map(str, value)]
        elif value is not None:
            flags += [flag, str(value)]
    return flags


def parse(command: type[T], arguments: Sequence[str], *, prog: str, description: str, switches: bool = False) -> T:
    """Read flags into a dataclass with tyro; a later flag wins over an earlier one. Usage errors exit with code 2.

    What is true or false is written `--flag True`, as in presets; with `switches` `--flag` alone says True.
    """
    import tyro

    return tyro.cli(
        command,
        args=list(arguments),
        prog=prog,
        description=description,
        config=(
            tyro.conf.FlagCreatePairsOff if switches else tyro.conf.FlagConversionOff,
            tyro.conf.OmitSubcommandPrefixes,
        ),
    )

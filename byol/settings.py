"""Settings as dataclasses, as YAML, and as command-line flags: one parser reads them all."""

import dataclasses
import shutil
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin

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
    return value.item() if hasattr(value, "item") else value  # a number of numpy's, which YAML and JSON do not know


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

    with _plain_help():
        return tyro.cli(
            command,
            args=list(arguments),
            prog=prog,
            description=wrapped(description),
            config=(
                tyro.conf.FlagCreatePairsOff if switches else tyro.conf.FlagConversionOff,
                tyro.conf.OmitSubcommandPrefixes,
            ),
        )


def wrapped(text: str) -> str:
    """Text as wide as the terminal. tyro does not wrap it, and joins lines unless they begin with a space."""
    return textwrap.fill(text, shutil.get_terminal_size().columns, subsequent_indent=" ")


def _plain_help() -> Any:
    """tyro's reading of a dataclass, with a help that calls positional words by their names and shows no None.

    What is derived when a flag is left out stands in its own words.
    """
    import tyro
    from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructTypeInfo

    registry, reading = ConstructorRegistry(), False

    @registry.struct_rule
    def named(info: StructTypeInfo) -> Any:
        nonlocal reading
        if reading or not dataclasses.is_dataclass(info.type):
            return None
        reading = True  # the second time round is tyro's own turn
        try:
            spec = ConstructorRegistry.get_struct_spec(info)
        finally:
            reading = False
        if not isinstance(spec, StructConstructorSpec):
            return spec
        return dataclasses.replace(spec, fields=tuple(map(_plain_field, spec.fields)))

    def _plain_field(field: Any) -> Any:
        if field.default is None:
            words = tyro.conf.arg(metavar=_metavar(field.type), help_behavior_hint="")
        elif field.default == ():
            words = tyro.conf.arg(help_behavior_hint="")
        elif tyro.conf.Positional in getattr(field.type, "__metadata__", ()):
            words = tyro.conf.arg(metavar=field.name.upper())
        else:
            return field
        return dataclasses.replace(field, type=Annotated[field.type, words])

    return registry


def _metavar(kind: Any) -> str:
    """What may stand behind a flag that may be left out: STR, INT, {bf16,fp32}, or several numbers: FLOAT ..."""
    part = next(part for part in get_args(kind) if part is not type(None))
    if get_origin(part) is tuple:
        return f"{get_args(part)[0].__name__.upper()} ..."
    choices = ",".join(map(str, get_args(part)))
    return f"{{{choices}}}" if choices else str(part.__name__).upper()

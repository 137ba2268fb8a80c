"""Settings as dataclasses, as YAML, and as command-line flags: one parser reads them all."""

import dataclasses
import os
import shutil
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin

from byol.errors import ConfigError, complaint, did_you_mean

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
    return (
        value.item() if hasattr(value, "item") else value
    )  # a number of numpy's, which YAML and JSON do not know


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
    elif not os.path.exists(path):
        raise ConfigError(
            f"There is no preset {preset!r}.{did_you_mean(preset, preset_names())} There are: {', '.join(preset_names())}."
        )
    values = read_yaml(path, "preset")
    if not isinstance(values, dict):
        raise ConfigError(
            f"The preset {path} holds a {type(values).__name__}; expected names and values, as in config.yaml."
        )
    return flags_of(values)


def read_yaml(path: Path, what: str) -> Any:
    """The plain values in a YAML file. Raises ConfigError, which says what the file was to be, when it cannot be read."""
    import yaml

    try:
        return yaml.safe_load(path.read_text())
    except FileNotFoundError as failure:
        raise ConfigError(f"There is no {what} at {path}; expected a YAML file.") from failure
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as failure:
        place = getattr(failure, "problem_mark", None)
        reason = f"line {place.line + 1}: {getattr(failure, 'problem', '')}" if place else complaint(failure)
        raise ConfigError(f"The {what} {path} cannot be read: {reason}. Expected a YAML file.") from failure


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


def parse(
    command: type[T], arguments: Sequence[str], *, prog: str, description: str, switches: bool = False
) -> T:
    """Read flags into a dataclass with tyro; a later flag wins over an earlier one. Usage errors exit with code 2.

    What is true or false is written `--flag True`, as in presets; with `switches` `--flag` alone says True.
    """
    import tyro

    try:
        with _plain_help():
            return tyro.cli(
                command,
                args=list(arguments),
                prog=prog,
                description=wrapped(description),
                config=(tyro.conf.FlagCreatePairsOff if switches else tyro.conf.FlagConversionOff,),
            )
    except _Refused as refused:
        raise refused.failure from None


class _Refused(Exception):
    """A ConfigError of a dataclass on its way through tyro, which would put any ValueError into a box of its own words."""

    def __init__(self, failure: ConfigError) -> None:
        super().__init__(str(failure))
        self.failure = failure


def wrapped(text: str) -> str:
    """Text as wide as the terminal. tyro does not wrap it, and joins lines unless they begin with a space."""
    return textwrap.fill(text, shutil.get_terminal_size().columns, subsequent_indent=" ")


def _plain_help() -> Any:
    """tyro's reading of a dataclass, with a help that calls positional words by their names and shows no None.

    What is derived when a flag is left out stands in its own words.
    """
    from tyro.constructors import (
        ConstructorRegistry,
        PrimitiveTypeInfo,
        StructConstructorSpec,
        StructTypeInfo,
    )

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
        return StructConstructorSpec(_refusing(spec.instantiate), tuple(map(_plain_field, spec.fields)))

    @registry.primitive_rule
    def or_none(info: PrimitiveTypeInfo) -> Any:
        kinds = [kind for kind in get_args(info.type) if kind is not type(None)]
        if len(kinds) != 1 or type(None) not in get_args(info.type):
            return None
        return _or_none(
            ConstructorRegistry.get_primitive_spec(PrimitiveTypeInfo.make(kinds[0], info.markers))
        )

    return registry


def _refusing(make: Callable[..., Any]) -> Callable[..., Any]:
    """A dataclass whose ConfigError tyro lets pass."""

    def instantiate(*positional: Any, **values: Any) -> Any:
        try:
            return make(*positional, **values)
        except ConfigError as failure:
            raise _Refused(failure) from failure

    instantiate.__doc__ = make.__doc__  # the help describes a group by it
    return instantiate


def _plain_field(field: Any) -> Any:
    """A flag whose help does not show what stands for nothing."""
    import tyro

    if field.default is None:
        words = tyro.conf.arg(metavar=_metavar(field.type), help_behavior_hint="")
    elif field.default == ():
        words = tyro.conf.arg(help_behavior_hint="")
    elif tyro.conf.Positional in getattr(field.type, "__metadata__", ()):
        words = tyro.conf.arg(metavar=field.name.upper())
    else:
        return field
    return dataclasses.replace(field, type=Annotated[field.type, words])


def _or_none(spec: Any) -> Any:
    """How `X | None` is read: None by that word, else as X is. tyro's own way answers with a list of all that failed."""
    from tyro.constructors import PrimitiveConstructorSpec

    if not isinstance(spec, PrimitiveConstructorSpec):
        return spec

    def read(words: list[str]) -> Any:
        if words == ["None"]:
            return None
        choices = words if spec.choices is None else spec.choices
        for word in words:
            if word not in choices:
                raise ValueError(f"invalid choice: {word!r} (choose from {', '.join(map(repr, choices))})")
        return spec.instance_from_str(words)

    return dataclasses.replace(
        spec,
        instance_from_str=read,
        is_instance=lambda value: value is None or spec.is_instance(value),
        str_from_instance=lambda value: ["None"] if value is None else spec.str_from_instance(value),
        choices=None,  # `read` tells them, without None
    )


def _metavar(kind: Any) -> str:
    """What may stand behind a flag that may be left out: STR, INT, {bf16,fp32}, or several numbers: FLOAT ..."""
    part = next(part for part in get_args(kind) if part is not type(None))
    if get_origin(part) is tuple:
        return f"{get_args(part)[0].__name__.upper()} ..."
    choices = ",".join(map(str, get_args(part)))
    return f"{{{choices}}}" if choices else str(part.__name__).upper()

"""Settings as dataclasses, as YAML, and as command-line flags: one parser reads them all."""

import dataclasses
import functools
import json
import math
import os
import re
import shutil
import textwrap
from collections.abc import Sequence
from functools import partial
from operator import le, lt
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

from byol.disk import parse_json, read_yaml
from byol.errors import ConfigError, did_you_mean, is_first, printable

T = TypeVar("T")
PRESETS = Path(__file__).parent / "presets"
KINDS = {int: "a whole number", float: "a finite number", bool: "True or False", NoneType: "nothing"}
KINDS |= {dict: "values by their names"}
# Each limit has the words for the message and a function that tests a value.
Count = Annotated[int, "at least 1", partial(le, 1)]
Positive = Annotated[float, "a positive number", partial(lt, 0)]
NotNegative = Annotated[float, "at least 0", partial(le, 0)]
Share = Annotated[float, "a number from 0 to 1", lambda value: 0 <= value <= 1]
ShareAbove0 = Annotated[float, "a number above 0, at most 1", lambda value: 0 < value <= 1]
ShareBelow1 = Annotated[float, "a number from 0 to less than 1", lambda value: 0 <= value < 1]
Side = Annotated[int, "at least 8", partial(le, 8)]  # pixels
TwoOrMore = Annotated[int, "at least 2", partial(le, 2)]


@dataclasses.dataclass(frozen=True)
class Checked:
    """Values of their fields' types and within their limits: for others the constructor raises ConfigError.

    Paths become strings, and numpy's numbers Python's. `group` goes before the names in messages.
    """

    group: ClassVar[str]

    def __init_subclass__(cls, group: str = "") -> None:
        cls.group = group

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self), include_extras=True)
        for name in (one.name for one in dataclasses.fields(self)):
            value, hint = getattr(self, name), hints[name]
            if isinstance(value, os.PathLike):
                value = os.fspath(value)
            if isinstance(value, np.generic):
                value = value.item()
            if isinstance(value, list) and not unfit(tuple(value), hint):  # as JSON has it
                value = tuple(value)
            if expected := unfit(value, hint):
                raise ConfigError(f"{self.group}{name} is {value!r:.200}; expected {expected}.")
            object.__setattr__(self, name, value)


def unfit(value: Any, kind: Any) -> str:
    """Say what was expected when the value is not of this type; "" when it is."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (UnionType, Union):
        words = [unfit(value, part) for part in parts]
        return " or ".join(words) if all(words) else ""
    if origin is Annotated:
        plain, expected, within = parts
        return unfit(value, plain) or ("" if within(value) else expected)
    if origin is tuple:
        several = parts[-1:] == (...,)
        kinds = [parts[0]] * (len(value) if isinstance(value, tuple) else 1) if several else [*parts]
        if isinstance(value, tuple) and len(value) == len(kinds) and not any(map(unfit, value, kinds)):
            return ""
        one = " or ".join(dict.fromkeys(unfit(None, part) for part in kinds))
        return f"a tuple, each of it {one}" if several else f"{len(kinds)} values, each {one}"
    if origin is Literal:
        fits = value in parts
    elif kind is float:
        fits = type(value) is int or (type(value) is float and math.isfinite(value))
    else:
        fits = type(value) is int if kind is int else isinstance(value, origin or kind)
    return "" if fits else KINDS.get(origin or kind) or " or ".join(map(str, parts)) or kind.__name__


def to_plain(config: Any) -> dict[str, Any]:
    """A dataclass as nested plain values, ready for YAML and JSON: no tuples, no numbers of numpy's."""
    plain: dict[str, Any] = parse_json(
        json.dumps(dataclasses.asdict(config), default=lambda value: value.item())
    )
    return plain


def to_yaml(config: Any) -> str:
    """A dataclass as YAML text."""
    import yaml

    return yaml.safe_dump(to_plain(config), sort_keys=False)


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by their dotted names."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What changed between two plain configs, one 'name: before -> now' each."""
    old, new = flat(before), flat(now)
    names = dict.fromkeys([*old, *new])
    changed = [name for name in names if old.get(name) != new.get(name)]
    return [f"{name:.200}: {old.get(name)!s:.200} -> {new.get(name)!s:.200}" for name in changed]


def preset_names() -> list[str]:
    """The presets that come with the package."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def preset_flags(preset: str) -> list[str]:
    """A preset (a shipped one's name, or the path of a YAML file) as the flags it stands for."""
    path = PRESETS / f"{preset}.yaml"
    if preset.endswith((".yaml", ".yml")):
        path = Path(preset)
    elif not os.path.exists(path):
        names = preset_names()
        raise ConfigError(
            f"There is no preset {preset!r}.{did_you_mean(preset, names)} There are: {', '.join(names)}."
        )
    values = read_yaml(path, "preset")
    try:
        return flags_of(values)
    except (ValueError, AttributeError) as failure:
        odd = failure if isinstance(values, dict) else f"a {type(values).__name__}"
        raise ConfigError(
            f"The preset {path} holds {odd}; expected settings, as in config.yaml."
        ) from failure


def flags_of(values: dict[str, Any]) -> list[str]:
    """Nested plain values as command-line flags; what is None is left out.

    Raises ValueError for a name that is not a setting's, and for a value that would be read as a flag or
    holds control characters.
    """
    flags: list[str] = []
    for name, value in flat(values).items():
        if not re.fullmatch(r"(?!help|tyro)[a-z][a-z0-9_.-]*", name):
            raise ValueError(f"the name {name!r}")
        words = [str(part) for part in value] if isinstance(value, list) else [str(value)]
        for word in words:
            flag = re.match("-+[a-z]", word, re.IGNORECASE) and word != "-inf"
            if flag or re.search(r"[\x00-\x1f\x7f-\x9f]", word):  # escape sequences for the terminal
                raise ValueError(f"{word!r} for {name}")
        if value is not None:
            flags += [f"--{name}".replace("_", "-"), *words]
    return flags


def parse(
    command: type[T], arguments: Sequence[str], *, prog: str, description: str, switches: bool = False
) -> T:
    """Read flags into a dataclass with tyro; a later flag wins over an earlier one. Usage errors exit with 2.

    What is true or false is written `--flag True`, as in presets; with `switches` `--flag` alone says True.
    """
    import tyro

    # tyro does not wrap a description, and joins its lines unless they begin with a space
    description = textwrap.fill(description, shutil.get_terminal_size().columns, subsequent_indent=" ")
    booleans = tyro.conf.FlagCreatePairsOff if switches else tyro.conf.FlagConversionOff
    first = is_first()  # of several processes, which all get the same flags
    words = [printable(word) for word in arguments]  # as a shell's * gives names of files

    def read(arguments: Sequence[str], tell: bool) -> T:
        with _rules():
            return tyro.cli(
                command,
                args=list(arguments),
                prog=prog,
                description=description,
                console_outputs=tell,
                config=(booleans, tyro.conf.PositionalMetavarFromFieldName),
            )

    try:
        try:
            return read(arguments, first and words == list(arguments))
        except SystemExit as left:
            if first and left.code and words != list(arguments):  # tyro repeats them as they are
                read(words, True)
            raise
    except SystemExit as left:
        if first or not left.code:
            raise
        failure = ConfigError("The flags cannot be read.")
    except _Refused as refused:
        failure = refused.args[0]
    failure.shared = True
    raise failure from None


class _Refused(Exception):
    """Carries a ConfigError through tyro, which would put any ValueError into a box of its own words."""


def _rules() -> Any:
    """tyro's way to read a dataclass, with a ConfigError told as it is and a help that does not show None."""
    from tyro.constructors import ConstructorRegistry, PrimitiveTypeInfo, StructConstructorSpec

    registry, reading = ConstructorRegistry(), False

    @registry.struct_rule
    def dataclass(info: Any) -> Any:
        nonlocal reading
        if reading or not dataclasses.is_dataclass(info.type):
            return None
        reading = True  # the second time round is tyro's own turn
        spec: Any = ConstructorRegistry.get_struct_spec(info)
        reading = False

        @functools.wraps(spec.instantiate)  # the help describes a group by its docstring
        def make(**values: Any) -> Any:
            try:
                return spec.instantiate(**values)
            except ConfigError as failure:
                raise _Refused(failure) from failure

        return StructConstructorSpec(make, tuple(map(_without_none, spec.fields)))

    @registry.primitive_rule
    def or_none(info: Any) -> Any:
        kinds = [kind for kind in get_args(info.type) if kind is not type(None)]
        if len(kinds) != 1 or type(None) not in get_args(info.type):
            return None
        spec: Any = ConstructorRegistry.get_primitive_spec(PrimitiveTypeInfo.make(kinds[0], info.markers))
        return dataclasses.replace(
            spec,  # tyro's own way answers a wrong word with all the readings that it tried
            instance_from_str=lambda words: None if words == ["None"] else spec.instance_from_str(words),
            is_instance=lambda value: value is None or spec.is_instance(value),
            str_from_instance=lambda value: ["None"] if value is None else spec.str_from_instance(value),
            choices=spec.choices and (*spec.choices, "None"),
        )

    return registry


def _without_none(field: Any) -> Any:
    """A field whose help shows no default where that is nothing, on lines as long as the terminal allows."""
    import tyro

    words = field.helptext() if callable(field.helptext) else field.helptext
    told = tyro.conf.arg(
        help=words and " ".join(words.split()),
        help_behavior_hint=lambda default: "" if default in ("None", "") else f"(default: {default})",
    )
    return dataclasses.replace(field, type=Annotated[field.type, told])

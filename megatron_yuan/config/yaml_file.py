"""Configs as YAML: `model: {num_layers: 4}` by section, or `num-layers: 4` flat; strict about names and types."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, cast, get_args, get_origin

import yaml

from megatron_yuan.config.fields import Setting, perhaps, sections, settings, with_values
from megatron_yuan.config.schema import Config
from megatron_yuan.errors import ConfigError


def to_yaml(config: Config) -> str:
    """The whole of `config`, by section, in the schema's order; `from_yaml` gives back an equal one."""
    by_section = {section: _plain(leaves) for section, leaves in asdict(config).items()}
    return yaml.safe_dump(by_section, sort_keys=False, allow_unicode=True, width=120)


def from_yaml(text: str, base: Config | None = None, source: str = "YAML") -> Config:
    """`base` (unset, the defaults) with the settings in `text`. Raises ConfigError that begins with `source`."""
    try:
        tree = load_plain(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{source} is not YAML: {' '.join(str(error).split())}") from None
    if tree is None:
        tree = {}
    return with_values(base or Config(), _leaves(_mapping(tree, source), source))


def read_yaml(path: str | Path, base: Config | None = None) -> Config:
    """`from_yaml` of a file."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError(f"config {path}: cannot be read ({reason}); give a YAML file.") from None
    return from_yaml(text, base, f"config {path}")


def load_plain(text: str) -> Any:
    """YAML as plain Python values; a key that is given twice is an error. Raises yaml.YAMLError, ValueError,
    RecursionError."""
    try:
        return yaml.load(text, _NoTwice)
    except (KeyError, AttributeError, TypeError) as error:  # of its own constructors, as for `!!bool foo`
        raise yaml.YAMLError(f"a value does not fit its tag ({error})") from None


class _NoTwice(yaml.SafeLoader):
    """Reads plain YAML, but a key that is given twice is an error, where YAML itself would forget the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping of `node`."""
        seen = set[str]()
        for key, _ in node.value:
            name = str(key.value).replace("-", "_")
            if name in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{name} is given twice; keep one", key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)


def _mapping(tree: Any, where: str) -> dict[str, Any]:
    if not isinstance(tree, dict):
        raise ConfigError(f"{where} holds {tree!r} where settings were expected; write lines such as 'num_layers: 4'.")
    return {str(key).replace("-", "_"): value for key, value in cast("dict[Any, Any]", tree).items()}


def _leaves(tree: dict[str, Any], source: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in tree.items():
        inside: dict[str, Any] = {key: value}
        if key in sections():
            inside = {} if value is None else _mapping(value, f"{source}: section {key}")
        for name, leaf in inside.items():
            setting = settings().get(name)
            if setting is None:
                raise ConfigError(f"{source}: unknown key {name!r}{perhaps(name, [*settings(), *sections()])}.")
            if key in sections() and setting.section != key:
                raise ConfigError(f"{source}: {name} is in section {setting.section}, not in {key}; move it there.")
            if name in values:
                raise ConfigError(f"{source}: {name} is given twice, flat and in its section; keep one.")
            values[name] = _typed(leaf, setting, source)
    return values


def _typed(value: Any, setting: Setting, source: str) -> Any:
    try:
        return convert(value, setting.type)
    except (TypeError, ValueError, OverflowError):
        raise ConfigError(f"{source}: {setting.name} is {value!r}, but must be {_spelled(setting.type)}.") from None


def convert(value: Any, kind: Any) -> Any:
    """A YAML value as the annotated type `kind`. Raises ValueError or TypeError where it does not fit."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        if value is None and NoneType in arguments:
            return None
        return convert(value, next(a for a in arguments if a is not NoneType))
    if origin is Literal:
        if value in arguments:
            return value
        raise ValueError(value)
    if origin is tuple:
        items = [] if value is None else value.split() if isinstance(value, str) else value
        if not isinstance(items, list) or not all(type(item) in (str, int, float) for item in cast("list[Any]", items)):
            raise TypeError
        return tuple(convert(item, arguments[0]) for item in cast("list[Any]", items))
    if kind is bool or isinstance(value, bool):
        if kind is bool and isinstance(value, bool):
            return value
        raise ValueError(value)
    if isinstance(value, (list, dict)) or value is None:
        raise TypeError
    if kind is str and not isinstance(value, str):
        # A layout of one stage, 12, is a number to YAML.
        return str(value)
    if kind is int and isinstance(value, float) and not value.is_integer():
        raise ValueError(value)
    # YAML 1.1 reads 1e-4 (no dot) as text; float() knows better.
    return kind(value)


def _spelled(kind: Any) -> str:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join("null" if a is NoneType else _spelled(a) for a in arguments)
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin is tuple:
        return "a list of texts"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    return names.get(kind, str(kind))


def _plain(leaves: dict[str, Any]) -> dict[str, Any]:
    return {name: list(cast("tuple[Any]", v)) if isinstance(v, tuple) else v for name, v in leaves.items()}

"""The settings by their leaf names: what `num_layers` is, where it lives, and what `num_layer` probably meant."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from functools import cache
from typing import Any, get_type_hints

from megatron_yuan.config.schema import Config

PATHS = (
    "data_path",
    "train_data_path",
    "valid_data_path",
    "test_data_path",
    "data_args_path",
    "tokenizer_model",
    "data_cache_path",
    "save",
    "load",
    "tensorboard_dir",
    "task_data",
)
"""Settings that name files or folders, with weights between them or without."""


@dataclass(frozen=True)
class Setting:
    """One leaf of the schema."""

    section: str
    name: str
    type: Any

    @property
    def flag(self) -> str:
        """Its flag, such as --num-layers."""
        return as_flag(self.name)


@cache
def settings() -> dict[str, Setting]:
    """Every setting by leaf name, in the schema's order. An AssertionError is our bug: two sections share a name."""
    found: dict[str, Setting] = {}
    for section, kind in get_type_hints(Config).items():
        hints = get_type_hints(kind)
        for item in fields(kind):
            assert item.name not in found, f"setting {item.name} is in {found[item.name].section} and in {section}"
            found[item.name] = Setting(section, item.name, hints[item.name])
    return found


def sections() -> tuple[str, ...]:
    """Names of the sections, in the schema's order."""
    return tuple(get_type_hints(Config))


def value_of(config: Config, name: str) -> Any:
    """The value of the leaf `name`."""
    return getattr(getattr(config, settings()[name].section), name)


def with_values(config: Config, values: Mapping[str, Any]) -> Config:
    """A copy of `config` with the leaves named in `values` replaced."""
    by_section: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        by_section.setdefault(settings()[name].section, {})[name] = value
    return replace(config, **{s: replace(getattr(config, s), **leaves) for s, leaves in by_section.items()})


def differences(config: Config, base: Config) -> list[tuple[str, Any, Any]]:
    """(leaf name, value in `base`, value in `config`) for each setting that differs."""
    pairs = ((name, value_of(base, name), value_of(config, name)) for name in settings())
    return [(name, old, new) for name, old, new in pairs if old != new]


def as_flag(name: str) -> str:
    """num_layers -> --num-layers."""
    return "--" + name.replace("_", "-")


def perhaps(word: str, known: Iterable[str]) -> str:
    """'; perhaps you meant X' for the nearest of `known`, or nothing where none is near."""
    near = get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; perhaps you meant {near[0]}" if near else ""

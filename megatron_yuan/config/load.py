"""From a command line to a config: preset, then `--config` file, then flags; the last word counts."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import tyro

from megatron_yuan.config.fields import PATHS, as_flag, differences, sections, value_of, with_values
from megatron_yuan.config.presets import PresetName, preset
from megatron_yuan.config.schema import Config
from megatron_yuan.config.translate import OWN_FLAGS, Translation, translate
from megatron_yuan.config.validate import validate
from megatron_yuan.config.yaml_file import read_yaml
from megatron_yuan.errors import ConfigError

PROGRAM = "pretrain_yuan_moe.py"
DESCRIPTION = """Pretrain a Yuan mixture-of-experts language model. Settings: preset, then --config file, then flags.

Start it with python for one process, or with torchrun for a pipeline or several replicas."""


@dataclass(frozen=True)
class Invocation:
    """What a command line asks for."""

    config: Config
    """The settings, checked against each other; the world's size has had no say yet."""
    preset: str | None = None
    """The preset that they started from."""
    dry_run: bool = False
    """Report what the run would be, build nothing, and exit."""
    remarks: tuple[str, ...] = ()
    """What to tell the user once about flags that were accepted without effect or with another meaning."""


def load_config(argv: Sequence[str]) -> Config:
    """The config of a command line (without the program's name). Raises ConfigError; --help exits with 0."""
    return parse(argv).config


def parse(argv: Sequence[str], instead: Mapping[str, Any] | None = None) -> Invocation:
    """All that a command line asks for; `instead` stands for what preset and file say of those settings.

    Raises ConfigError, in one or two lines; --help prints and exits with 0.
    """
    translation = translate(argv)
    name, file = _value_of("--preset", translation), _value_of("--config", translation)
    base = Config() if name is None else preset(name)
    if file is not None:
        base = read_yaml(file, base)
    base = with_values(base, instead or {})
    parsed = _parse_flags(translation.argv, base)
    config = with_values(parsed.config, _virtual_stages(parsed.config, translation.layers_per_virtual_stage))
    config = with_values(config, _homes(config))
    validate(config)
    return Invocation(config, name, parsed.dry_run, translation.remarks)


def diff_from_preset(config: Config, preset_name: str | None) -> list[str]:
    """Lines such as '--lr 0.001 (preset: 0.0001)' for each setting unlike the preset's (none: the default's)."""
    base, origin = (preset(preset_name), "preset") if preset_name else (Config(), "default")
    return [f"{as_flag(leaf)} {new} ({origin}: {old})" for leaf, old, new in differences(config, base)]


@dataclass(frozen=True)
class _Parsed:
    config: Config
    dry_run: bool


def _parse_flags(argv: Sequence[str], base: Config) -> _Parsed:
    arguments: dict[str, Any] = {
        "default": _CommandLine(**{section: getattr(base, section) for section in sections()}),
        "prog": PROGRAM,
        "description": DESCRIPTION,
        "config": (tyro.conf.OmitArgPrefixes,),
    }
    if "--help" in argv:
        tyro.cli(_CommandLine, args=["--help"], **arguments)
    said = io.StringIO()
    try:
        # tyro prints its error and exits; ours is its first paragraph, on a line.
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            line: _CommandLine = cast("_CommandLine", tyro.cli(_CommandLine, args=list(argv), **arguments))
    except SystemExit:
        raise ConfigError(_first_paragraph(said.getvalue())) from None
    return _Parsed(Config(**{section: getattr(line, section) for section in sections()}), line.dry_run)


@dataclass(frozen=True)
class _CommandLine(Config):
    """As Config, with what is no setting of the run."""

    preset: PresetName | None = None
    """Named starting point of all settings."""
    config: Path | None = None
    """YAML file of settings, by section or flat; it outranks the preset, and flags outrank it."""
    dry_run: bool = False
    """Print the resolved settings, sizes, FLOPs and memory of each stage; build nothing."""


def _first_paragraph(said: str) -> str:
    """Of what tyro prints where it cannot draw boxes: a title, a rule, the message, a blank line or a rule, advice."""
    lines = [line.strip() for line in said.splitlines()]
    after_title = lines[next((i + 1 for i, line in enumerate(lines) if line.startswith("---")), 0) :]
    message = itertools.takewhile(lambda line: line and not line.startswith("---"), after_title)
    return " ".join(message).rstrip(".") + "; --help says more."


def _value_of(flag: str, translation: Translation) -> str | None:
    assert OWN_FLAGS[flag] == 1
    argv = translation.argv
    return argv[argv.index(flag) + 1] if flag in argv else None


def _virtual_stages(config: Config, layers_each: int | None) -> dict[str, int]:
    if layers_each is None:
        return {}
    layers, stages = config.model.num_layers, config.parallel.pipeline_model_parallel_size
    if layers < 1 or stages < 1:
        return {}  # which validate refuses
    if layers % (stages * layers_each):
        raise ConfigError(
            f"--num-layers-per-virtual-pipeline-stage {layers_each} x {stages} stages do not divide num-layers "
            f"{layers};"
            "\ngive --virtual-pipeline-model-parallel-size and --pipeline-model-parallel-layout instead."
        )
    return {"virtual_pipeline_model_parallel_size": layers // stages // layers_each}


def _homes(config: Config) -> dict[str, Any]:
    """Every path that begins with ~, which shells leave as it is in --save=~/runs, written out."""
    found: dict[str, Any] = {}
    for name in PATHS:
        value = value_of(config, name)
        if isinstance(value, tuple):
            found[name] = tuple(os.path.expanduser(item) for item in cast("tuple[str, ...]", value))
        elif value is not None:
            found[name] = os.path.expanduser(value)
    return found

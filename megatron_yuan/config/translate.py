"""From the flags as people give them to the flags of our settings: the table of `published.py`, applied.

Only names and the number of values are judged here; what a value may be is the schema's business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_origin

from megatron_yuan.config.fields import as_flag, perhaps, settings
from megatron_yuan.config.published import TABLE, Accepted, Refused, Renamed
from megatron_yuan.errors import ConfigError

ANY = -1  # number of values of a flag that takes as many as follow
OWN_FLAGS = {"--preset": 1, "--config": 1, "--dry-run": 0, "--help": 0}


@dataclass(frozen=True)
class Translation:
    """A command line in our own flags."""

    argv: tuple[str, ...]
    remarks: tuple[str, ...]
    """What was accepted without effect or with another meaning, to be printed once."""
    layers_per_virtual_stage: int | None = None
    """Of --num-layers-per-virtual-pipeline-stage, which needs the resolved layers and stages."""


Given = dict[str, list[str]]


def translate(argv: Sequence[str]) -> Translation:
    """`argv` with published and Megatron-LM flags replaced. Raises ConfigError for a refused or an unknown flag."""
    given: Given = {}  # in the order of the last word on each, which counts
    remarks: list[str] = []
    always: list[str] = []
    for flag, values in _flags(argv):
        _check_count(flag, values)
        rule = TABLE.get(flag)
        if isinstance(rule, Refused):
            raise ConfigError(f"{flag} is refused: {rule.why}.")
        if isinstance(rule, Accepted):
            _accept(flag, values, rule)
            always.append(flag)
            continue
        if isinstance(rule, Renamed):
            flag, values = rule.to[0], values if rule.values else list(rule.to[1:])
            if rule.remark:
                remarks.append(rule.remark)
        given.pop(flag, None)
        given[flag] = values
    _later_counts(given, "--num-layers-per-virtual-pipeline-stage", "--virtual-pipeline-model-parallel-size")
    _later_counts(given, "--tokenizer-model", "--tokenizer-model-path")
    per_virtual_stage = given.pop("--num-layers-per-virtual-pipeline-stage", None)
    for special in _SPECIALS:
        remarks += special(given)
    if always:
        flags = " ".join(dict.fromkeys(always))
        remarks.append(f"nothing to do for {flags}: it is always so here (megatron_yuan/config/published.py)")
    flat = tuple(token for flag, values in given.items() for token in (flag, *values))
    return Translation(flat, tuple(remarks), None if per_virtual_stage is None else _whole(per_virtual_stage[0]))


def _later_counts(given: Given, *names: str) -> None:
    """Of flags that say the same in two ways, only the last one stays."""
    for name in [name for name in given if name in names][:-1]:
        del given[name]


def _flags(argv: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """(flag with hyphens, its values) from tokens such as --a 1 2 --b=3 --c."""
    flag, values = "", list[str]()
    for token in argv:
        if token == "-h":
            token = "--help"
        if not token.startswith("--"):
            if not flag:
                raise ConfigError(f"{token!r} comes before any flag; settings are given as --name value.")
            values.append(token)
            continue
        if flag:
            yield flag, values
        name, equals, value = token.partition("=")
        flag, values = "--" + name[2:].replace("_", "-"), [value] if equals else []
    if flag:
        yield flag, values


def _counts() -> dict[str, int]:
    """Every known flag, and how many values it takes."""
    counts = dict(OWN_FLAGS)
    for name, setting in settings().items():
        if setting.type is bool:
            counts[as_flag(name)] = counts[as_flag("no_" + name)] = 0
        else:
            counts[as_flag(name)] = ANY if get_origin(setting.type) is tuple else 1
    counts.update({flag: ANY if isinstance(rule, Refused) else rule.values for flag, rule in TABLE.items()})
    return counts


def _check_count(flag: str, values: list[str]) -> None:
    counts = _counts()
    if flag not in counts:
        raise ConfigError(f"unknown flag {flag}{perhaps(flag, counts)}; --help lists all.")
    count = counts[flag]
    if count == ANY or len(values) == count:
        return
    if len(values) < count:
        raise ConfigError(f"{flag} needs a value; give one after it.")
    left = " ".join(values[count:])
    if count:
        raise ConfigError(f"{flag} takes one value, {values[0]!r}, but {left!r} follows; drop it or name its flag.")
    raise ConfigError(f"{flag} takes no value, but {left!r} follows; give the flag alone, or its --no- form.")


def _accept(flag: str, values: list[str], rule: Accepted) -> None:
    if rule.only is not None and values[0] not in rule.only:
        raise ConfigError(f"{flag} {values[0]} is refused, only {' or '.join(rule.only)} is accepted: {rule.why}.")


def _whole(value: str) -> int:
    if not value.isdecimal() or int(value) < 1:
        raise ConfigError(f"--num-layers-per-virtual-pipeline-stage {value} must be a whole number, at least 1.")
    return int(value)


def _attention_dropout(given: Given) -> list[str]:
    """The published attention is a flash kernel: its dropout is --flash-attn-drop, --attention-dropout does nothing."""
    flash = given.pop("--flash-attn-drop", None)
    if flash is None:
        return []
    other = given.get("--attention-dropout", flash)
    given["--attention-dropout"] = flash
    if other == flash:
        return []
    if not _is_zero(other[0]):
        raise ConfigError(
            f"--flash-attn-drop {flash[0]} and --attention-dropout {other[0]} contradict each other; give one."
        )
    return [
        f"--flash-attn-drop {flash[0]} is the dropout of attention; --attention-dropout {other[0]} beside it has no"
        " effect, as in the published code"
    ]


def _is_zero(value: str) -> bool:
    try:
        return float(value) == 0
    except ValueError:
        return False


def _recompute(given: Given) -> list[str]:
    """block: the first --recompute-num-layers of each chunk, as here; uniform: all, in groups of so many."""
    method = given.pop("--recompute-method", ["block"])[0]
    if method not in ("block", "uniform"):
        raise ConfigError(f"--recompute-method {method} must be block or uniform.")
    if method == "block":
        return []
    size = given.get("--recompute-num-layers", ["1"])[0]
    if not size.isdecimal() or int(size) < 1:
        raise ConfigError(f"--recompute-num-layers {size} must be a whole number, at least 1.")
    given["--recompute-num-layers"] = ["None"]
    if size == "1":
        return []
    return [f"--recompute-method uniform recomputes every layer by itself; groups of {size} are not made"]


def _tokenizer(given: Given) -> list[str]:
    path = given.pop("--tokenizer-model-path", None)
    if path is not None:
        # The published scripts name the folder.
        folder = Path(path[0])
        given["--tokenizer-model"] = [str(folder / "tokenizer.model") if folder.is_dir() else path[0]]
    return []


def _layout(given: Given) -> list[str]:
    """--pipeline-model-parallel-method block --pipeline-model-parallel-blocks 2,3,3,2 (or with spaces)."""
    method = given.pop("--pipeline-model-parallel-method", [None])[0]
    blocks = given.pop("--pipeline-model-parallel-blocks", [])
    if method not in (None, "uniform", "block"):
        raise ConfigError(f"--pipeline-model-parallel-method {method} must be uniform or block.")
    if method == "block" and not blocks:
        raise ConfigError(
            "--pipeline-model-parallel-method block needs the layers of each stage; "
            "give --pipeline-model-parallel-layout 2,4,4,2 (or --pipeline-model-parallel-blocks)."
        )
    if method == "uniform" and blocks:
        raise ConfigError("--pipeline-model-parallel-blocks contradicts --pipeline-model-parallel-method uniform.")
    if blocks:
        given["--pipeline-model-parallel-layout"] = [
            ",".join(",".join(blocks).replace(",,", ",").strip(",").split(","))
        ]
    elif method == "uniform":
        given["--pipeline-model-parallel-layout"] = ["None"]
    return []


_SPECIALS: tuple[Callable[[Given], list[str]], ...] = (_attention_dropout, _recompute, _tokenizer, _layout)

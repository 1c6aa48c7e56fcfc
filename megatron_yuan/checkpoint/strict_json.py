"""JSON read as strictly as a checkpoint deserves: one object, no NaN, no key twice, every refusal in words."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

from megatron_yuan.checkpoint.damage import DamagedError


def parse(text: str | bytes, source: str) -> dict[str, Any]:
    """The JSON object in `text`; `source` names it in the `DamagedError` that anything else becomes."""
    try:
        value = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite, object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise DamagedError(f"{source} is not valid JSON ({error}): the file is damaged or not ours") from None
    if not isinstance(value, dict):
        raise DamagedError(f"{source} holds a JSON {type(value).__name__} where an object was expected")
    return value


def canonical(value: Any) -> str:
    """One text for one value (sorted keys, no spaces), to be hashed; ValueError or TypeError for what is not JSON."""
    return json.dumps(value, allow_nan=False, sort_keys=True, separators=(",", ":"))


def readable(value: Any) -> str:
    """The same, indented for people."""
    return json.dumps(value, allow_nan=False, indent=1, ensure_ascii=False) + "\n"


def is_count(value: Any) -> bool:
    """Whether `value` is a whole number from 0 up that 63 bits hold (JSON's true is not)."""
    return type(value) is int and 0 <= value < 2**63


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is out of range")
    return value


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key appears twice")
    return found

"""The passport of a dataset: a JSON file beside its .bin and .idx that says what made it and what is in it.

Nothing in it depends on when, where or by how many workers the data was made: equal data has an equal passport.
"""

from __future__ import annotations

import json
import os
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from megatron_yuan.data.digest import sha256_of_entries
from megatron_yuan.errors import DataError

VERSION = 3
"""2 tells more than 1, and 3 has `sha256_of_entries` besides: a digest of all the rest."""


@dataclass(frozen=True)
class Passport:
    """What one .bin/.idx pair is."""

    version: int
    tokenizer_sha256: str
    vocab_size: int
    """Ids that the tokenizer can make; every id in the data is below it."""
    eod_id: int
    append_eod: bool
    documents: int
    tokens: int
    bin_bytes: int
    bin_sha256: str
    idx_bytes: int
    idx_sha256: str
    # Since version 2.
    tool: str = ""
    """What made it, with its version."""
    special_ids: dict[str, int] = field(default_factory=dict)
    text_bytes: int = 0
    """Of the documents, in UTF-8."""
    rejects: dict[str, int] = field(default_factory=dict)
    """Documents left out, by reason."""
    inputs: list[dict[str, Any]] = field(default_factory=list)
    """Name, bytes and sha256 of each file of text, in order."""
    json_key: str = "text"
    """The key whose text this is."""
    json_keys: list[str] = field(default_factory=list)
    """All that were asked for: a document that lacks one of them is in none of the pairs."""
    on_error: str = "stop"


def passport_path(prefix: str | Path) -> Path:
    """Where the passport of PREFIX.bin and PREFIX.idx is."""
    return Path(f"{prefix}.json")


def write_passport(path: Path, passport: Passport) -> None:
    """Write `passport`, sorted and indented, so that equal data has an equal file."""
    entries = asdict(passport)
    signed = entries | {"sha256_of_entries": sha256_of_entries(entries)}
    path.write_text(json.dumps(signed, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def read_passport(prefix: str | Path) -> Passport | None:
    """The passport of a pair, None where it has none (as when Megatron-LM made it). Raises DataError if damaged."""
    path = passport_path(prefix)
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise TypeError("it is no JSON object")
        version, digest = found.get("version"), found.pop("sha256_of_entries", None)
        if type(version) is not int or not 1 <= version <= VERSION:
            raise ValueError(f"version is {version!r}, not {VERSION} or older")
        for each in fields(Passport):
            if each.name not in found:
                if version == 1 and each.name in _SINCE_2:
                    continue
                raise ValueError(f"{each.name} is missing")
            _check(each.name, found[each.name], str(each.type))
        if digest != (sha256_of_entries(found) if version >= 3 else None):
            raise ValueError("its entries are not those that it was written with")
        return Passport(**{each.name: found[each.name] for each in fields(Passport) if each.name in found})
    except (ValueError, TypeError, OSError, RecursionError) as error:
        said = str(error)[:200]
        raise DataError(f"{path} is damaged or newer than this program ({said}). Fix: preprocess again.") from None


_SINCE_2 = {
    each.name for each in fields(Passport) if each.default is not MISSING or each.default_factory is not MISSING
}


def _check(name: str, value: Any, kind: str) -> None:
    """A type as it is written above, and numbers not below 0."""
    if type(value).__name__ != kind.partition("[")[0] or (kind == "int" and value < 0):
        raise TypeError(f"{name} is {str(value)[:80]!r}")
    if kind == "dict[str, int]":
        for key, each in value.items():
            _check(f"{name} of {key!r}", each, "int")
    if kind.startswith("list["):
        for number, each in enumerate(value):
            _check(f"{name} {number}", each, kind[len("list[") : -1])
    if name.endswith("_sha256") and (len(value) != 64 or set(value) - set("0123456789abcdef")):
        raise TypeError(f"{name} is {value[:80]!r}")


def is_outdated(prefix: str) -> bool:
    """Whether the tokens were written after their passport, which is the last file to be made."""
    return os.stat(prefix + ".bin").st_mtime_ns > passport_path(prefix).stat().st_mtime_ns

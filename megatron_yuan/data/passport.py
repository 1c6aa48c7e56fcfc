"""The passport of a dataset: a JSON file beside its .bin and .idx that says what made it and what is in it."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from megatron_yuan.data.tokenizer import Tokenizer
from megatron_yuan.errors import DataError

VERSION = 1


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


def passport_path(prefix: str | Path) -> Path:
    """Where the passport of PREFIX.bin and PREFIX.idx is."""
    return Path(f"{prefix}.json")


def write_passport(path: Path, passport: Passport) -> None:
    """Write `passport`, sorted and indented, so that equal data has an equal file."""
    path.write_text(json.dumps(asdict(passport), indent=1, sort_keys=True) + "\n", encoding="utf-8")


def read_passport(prefix: str | Path) -> Passport | None:
    """The passport of a pair, None where it has none (as when Megatron-LM made it). Raises DataError if damaged."""
    path = passport_path(prefix)
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        known = {field.name for field in fields(Passport)}
        if not isinstance(found, dict) or found.get("version", 0) > VERSION:
            raise ValueError(f"version is not {VERSION} or older")
        passport = Passport(**{name: found[name] for name in known})
        for field in fields(Passport):
            if type(getattr(passport, field.name)).__name__ != field.type:
                raise TypeError(f"{field.name} is {getattr(passport, field.name)!r}")
        return passport
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise DataError(f"{path} is damaged or newer than this program ({error}). Fix: preprocess again.") from None


def check_passport(prefix: str, passport: Passport, tokenizer: Tokenizer | None) -> None:
    """Refuse data whose files have changed in size, or that another tokenizer made."""
    for ending, size in ((".bin", passport.bin_bytes), (".idx", passport.idx_bytes)):
        found = os.path.getsize(prefix + ending)
        if found != size:
            raise DataError(
                f"data_path {prefix}: {ending} has {found} bytes, its passport says {size}. Fix: preprocess again."
            )
    if tokenizer is not None and tokenizer.sha256 != passport.tokenizer_sha256:
        raise DataError(
            f"tokenizer_model {tokenizer.path} is not the one that made {prefix} (sha256 {tokenizer.sha256[:12]}..., "
            f"the data's is {passport.tokenizer_sha256[:12]}...). Fix: give the data's tokenizer, or preprocess again."
        )


def is_outdated(prefix: str) -> bool:
    """Whether the tokens were written after their passport, which is the last file to be made."""
    return os.stat(prefix + ".bin").st_mtime_ns > passport_path(prefix).stat().st_mtime_ns


def sha256_of(path: Path) -> str:
    """Hex digest of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()

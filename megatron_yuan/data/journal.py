"""How far preprocessing has come, on the disk: so that work that was broken off can go on.

The journal is replaced whole, after everything it speaks of is on the disk. What lies behind it in the files in the
making is cut off when work goes on.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from megatron_yuan.data.digest import sha256_of_entries
from megatron_yuan.errors import DataError

VERSION = 2


@dataclass
class PairCounts:
    """What was written of one pair."""

    documents: int = 0
    tokens: int = 0
    text_bytes: int = 0
    bin_sha256: str = ""
    lengths_sha256: str = ""


@dataclass
class Journal:
    """What a run of preprocessing is, and how far it has come."""

    made_by: dict[str, Any]
    """Inputs, tokenizer and options: all that the output depends on."""
    overwrite: bool
    pairs: list[PairCounts]
    files: list[str] = field(default_factory=list)
    """sha256 of the input files that are done."""
    batches: int = 0
    """Of the next file, those that are done."""
    sha256: str = ""
    """Of what was read of that file up to there."""
    rejects: dict[str, int] = field(default_factory=dict)
    """Documents left out, by reason."""
    rejects_bytes: int = 0
    """Of their list."""
    rejects_sha256: str = ""
    input_bytes: int = 0
    """Of rows read, unpacked."""
    disk_bytes: int = 0
    """Of input files read, as they lie on the disk."""
    complete: bool = False
    """All is written, and only has to be given its name."""


def journal_path(output_prefix: str | Path) -> Path:
    """Where the journal of a run is, until it ends."""
    return hidden(Path(f"{output_prefix}.journal"))


def hidden(path: Path) -> Path:
    """The name of a file in the making."""
    return path.with_name(f".{path.name}.part")


def write_journal(path: Path, journal: Journal) -> None:
    """Replace the journal. Raises OSError."""
    temporary = path.with_name(path.name + ".new")
    with open(temporary, "w", encoding="utf-8") as file:
        entries = asdict(journal)
        json.dump({"version": VERSION, "sha256_of_entries": sha256_of_entries(entries), **entries}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_folder(path.parent)


def read_journal(path: Path) -> Journal | None:
    """None where there is none. Raises DataError if it is damaged."""
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found.pop("version") != VERSION:
            raise ValueError("its version is another")
        if found.pop("sha256_of_entries") != sha256_of_entries(found):
            raise ValueError("it is damaged")
        if set(found) != {each.name for each in fields(Journal)}:
            raise ValueError("its entries are others")
        return Journal(**(found | {"pairs": [PairCounts(**each) for each in found["pairs"]]}))
    except (ValueError, TypeError, KeyError, AttributeError, OSError, RecursionError) as error:
        raise DataError(
            f"journal {path} cannot be used ({error}). Fix: begin anew, with --overwrite and without --resume."
        ) from None


def sync_folder(folder: Path) -> None:
    """Wait until renames in `folder` are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

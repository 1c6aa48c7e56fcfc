"""sha256 of a file, and of the entries of a JSON object: what tells data, and what is said of it, from damage."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def sha256_of(path: Path) -> str:
    """Hex digest of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def sha256_of_entries(entries: Mapping[str, Any]) -> str:
    """Hex digest of names and values, whatever their order and however they are written down."""
    return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()

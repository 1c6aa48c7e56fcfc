"""What the processes of a drill tell it, by lines of JSON in one file: they share no other channel with it, and they
die in the middle of what they do."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any


def tell(path: Path, event: str, **what: Any) -> None:
    """Append one event, in one write, so that several processes may tell at once and none leaves half a line."""
    line = json.dumps({"event": event, "time": time.time(), **what}) + "\n"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


def told(path: Path, event: str | None = None, **where: Any) -> list[dict[str, Any]]:
    """All events so far, or those of one name with these values."""
    if not path.exists():
        return []
    found = [json.loads(line) for line in path.read_text().splitlines()]
    return [
        each
        for each in found
        if event in (None, each["event"]) and all(each.get(name) == value for name, value in where.items())
    ]

"""What is known of a large file, remembered for as long as the file stays as it is: so that nothing is read twice.

A stamp is a small file in the cache folder, JSON under its own sha256, named after the file's path, size, times and
inode. Whoever writes into the file, or puts another in its place, changes its ctime or its inode, which no program can
set: the stamp is then no longer found.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import time
from pathlib import Path
from typing import Any

CACHE = "index-cache"  # the folder beside data in which a run keeps what it made of them
COARSE_NS = 2_000_000_000  # of file systems that count whole seconds
FINE_NS = 100_000_000  # ten times the kernel's tick, by which the others count


class Stamps:
    """The stamps in one cache folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "stamps"

    def recall(self, path: Path) -> dict[str, Any]:
        """What was remembered of `path` as it is now; empty where nothing was, or where the stamp is damaged."""
        try:
            digest, _, facts = self._file(path, path.stat()).read_text(encoding="utf-8").partition("\n")
            return json.loads(facts) if digest == _digest(facts) else {}
        except (OSError, ValueError):
            return {}

    def remember(self, path: Path, seen: os.stat_result, facts: dict[str, Any], fresh: bool = False) -> None:
        """Keep `facts` of `path`, which `seen` (taken before it was read) describes, beside those kept before.

        A file written within the clock's last tick could change once more without a trace, so nothing is kept of it,
        unless it is `fresh`: from our own hands, and never written again. A folder that takes no files keeps nothing.
        """
        age = time.time_ns() - max(seen.st_ctime_ns, seen.st_mtime_ns)
        if not fresh and age < (FINE_NS if seen.st_ctime_ns % 1_000_000_000 else COARSE_NS):
            return
        with contextlib.suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            text = json.dumps(self.recall(path) | facts, sort_keys=True)
            write_whole(self._file(path, seen), f"{_digest(text)}\n{text}".encode())

    def sha256(self, path: Path) -> str:
        """Of the file's bytes, read only where they are not known."""
        known = self.recall(path).get("sha256")
        if isinstance(known, str):
            return known
        seen = path.stat()
        digest = hashlib.sha256()
        with open(path, "rb") as file:
            while block := file.read(2**22):
                digest.update(block)
        self.remember(path, seen, {"sha256": digest.hexdigest()})
        return digest.hexdigest()

    def _file(self, path: Path, seen: os.stat_result) -> Path:
        marks = (path.resolve(), seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns, seen.st_ino)
        return self.folder / (hashlib.sha256("\n".join(map(str, marks)).encode()).hexdigest()[:32] + ".json")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def write_whole(path: Path, data: bytes) -> None:
    """Give `path` its bytes in one step, so that nobody ever reads half of them. Raises OSError."""
    temporary = path.with_name(temporary_name(path.name))
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def temporary_name(name: str) -> str:
    """A hidden name that no other process uses, on this machine or another."""
    return f".{name}.{socket.gethostname()}.{os.getpid()}"

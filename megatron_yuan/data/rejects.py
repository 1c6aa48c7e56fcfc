"""The list of documents that were left out: an object a line, with file, line (or row) and reason."""

from __future__ import annotations

import json
from pathlib import Path

from megatron_yuan.data.inputs import Input
from megatron_yuan.data.journal import Journal
from megatron_yuan.data.parse import Reject, unit_of
from megatron_yuan.data.part_file import PartFile


class Rejects:
    """Writes the list, and counts in the journal what is on it."""

    def __init__(self, path: Path, journal: Journal) -> None:
        self._file, self._journal = PartFile(path, journal.rejects_bytes, journal.rejects_sha256), journal

    def add(self, source: Input, reject: Reject) -> None:
        """List one document."""
        entry = {"file": str(source.path), unit_of(source): reject.row, "reason": reject.reason, "why": reject.why}
        self._file.write((json.dumps(entry, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace"))
        counts = self._journal.rejects
        counts[reject.reason] = counts.get(reject.reason, 0) + 1
        self._journal.rejects_bytes = self._file.size

    def sync(self) -> None:
        """Wait until the list is on the disk."""
        self._file.sync()
        self._journal.rejects_sha256 = self._file.sha256

    def close(self) -> None:
        """Let go of it; it stays as it is."""
        self._file.close()

"""A .bin/.idx pair and its passport in the making: under hidden names until all is written."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from megatron_yuan.data.digest import sha256_of
from megatron_yuan.data.encode import Encoded
from megatron_yuan.data.index_writer import write_index
from megatron_yuan.data.journal import PairCounts, hidden
from megatron_yuan.data.part_file import PartFile
from megatron_yuan.data.passport import Passport, write_passport
from megatron_yuan.errors import DataError

ENDINGS = (".bin", ".json", ".idx")
"""In the order in which they get their names: without an .idx there is no pair."""


class PairWriter:
    """Writes PREFIX.bin, PREFIX.idx and PREFIX.json: `add` ..., then `finish`; `commit` gives them their names."""

    def __init__(self, prefix: Path, dtype: np.dtype, counts: PairCounts) -> None:
        self.prefix, self.counts, self._dtype = prefix, counts, dtype
        self._data = PartFile(Path(f"{prefix}.bin"), counts.tokens * dtype.itemsize, counts.bin_sha256)
        try:
            self._lengths = PartFile(Path(f"{prefix}.lengths"), counts.documents * 4, counts.lengths_sha256)
        except BaseException:
            self._data.close()
            raise
        self._open = 0  # tokens of a document that has not ended

    def add(self, encoded: Encoded) -> None:
        """Append documents, or a part of one."""
        lengths = encoded.lengths
        self.counts.tokens += len(encoded.ids)
        self.counts.text_bytes += encoded.text_bytes
        self._data.write(encoded.ids.tobytes())
        if not encoded.ended:
            self._open += len(encoded.ids)
            return
        if self._open:
            lengths = lengths.copy()
            lengths[0] += self._open
            self._open = 0
        self.counts.documents += len(lengths)
        self._lengths.write(lengths.tobytes())

    def sync(self) -> None:
        """Wait until all that was added is on the disk."""
        self._data.sync()
        self._lengths.sync()
        self.counts.bin_sha256, self.counts.lengths_sha256 = self._data.sha256, self._lengths.sha256

    def finish(self, passport: Callable[..., Passport]) -> Passport:
        """Write index and passport, still under hidden names, and wait until all is on the disk.

        `passport` makes one of what is only known now.
        """
        index, path = _part(self.prefix, ".idx"), _part(self.prefix, ".json")
        self.sync()
        write_index(index, self._lengths.part, self._dtype)
        found = passport(
            documents=self.counts.documents,
            tokens=self.counts.tokens,
            text_bytes=self.counts.text_bytes,
            bin_bytes=self._data.size,
            bin_sha256=self._data.sha256,
            idx_bytes=index.stat().st_size,
            idx_sha256=sha256_of(index),
        )
        write_passport(path, found)
        for each in (index, path):
            with open(each, "rb") as file:
                os.fsync(file.fileno())
        return found

    def close(self) -> None:
        """Let go of the files; they stay as they are."""
        self._data.close()
        self._lengths.close()


def commit_pair(prefix: Path) -> None:
    """Give finished files their names; those that have theirs already keep them. Raises OSError, DataError."""
    begun = not _part(prefix, ".bin").exists()
    for ending in ENDINGS:
        if not (_part(prefix, ending).exists() or (begun and Path(f"{prefix}{ending}").exists())):
            raise DataError(
                f"{_part(prefix, ending)} is gone, though its run's journal tells of it. Fix: begin anew, with "
                "--overwrite and without --resume."
            )
    if not begun:
        for ending in reversed(ENDINGS):  # an older pair, which must not be mixed with this one
            Path(f"{prefix}{ending}").unlink(missing_ok=True)
    for ending in ENDINGS:
        if _part(prefix, ending).exists():
            os.replace(_part(prefix, ending), f"{prefix}{ending}")
    _part(prefix, ".lengths").unlink(missing_ok=True)


def discard_pair(prefix: Path) -> None:
    """Remove whatever is still in the making."""
    for ending in (*ENDINGS, ".lengths"):
        _part(prefix, ending).unlink(missing_ok=True)


def _part(prefix: Path, ending: str) -> Path:
    return hidden(Path(f"{prefix}{ending}"))

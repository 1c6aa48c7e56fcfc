"""A .bin/.idx pair and its passport in the making: under temporary names until all is written."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from megatron_yuan.data.encode import Encoded, smallest_dtype
from megatron_yuan.data.passport import VERSION, Passport, passport_path, sha256_of, write_passport
from megatron_yuan.data.tokenizer import Tokenizer

ENDINGS = (".bin", ".idx", ".json")


class PairWriter:
    """Writes PREFIX.bin, PREFIX.idx and PREFIX.json: `add` ..., `finish`, `commit`, and `discard` at the end of all."""

    def __init__(self, prefix: Path, tokenizer: Tokenizer, append_eod: bool) -> None:
        from megatron_yuan.mcore.indexed import IndexedWriter  # seconds to import; checks come first

        self.prefix, self.tokenizer, self.append_eod = prefix, tokenizer, append_eod
        self.documents = self.tokens = self.left_out = 0
        self._temporary = {ending: prefix.with_name(f".{prefix.name}{ending}.{os.getpid()}") for ending in ENDINGS}
        self._writer = IndexedWriter(self._temporary[".bin"], smallest_dtype(tokenizer.vocab_size))

    def add(self, encoded: Encoded) -> None:
        """Append the documents of a batch."""
        if len(encoded.lengths):
            self._writer.add(encoded.ids, encoded.lengths)
        self.documents += len(encoded.lengths)
        self.tokens += len(encoded.ids)
        self.left_out += encoded.left_out

    def finish(self) -> Passport:
        """Write index and passport, still under temporary names, and wait until all is on the disk."""
        data, index, passport = (self._temporary[ending] for ending in ENDINGS)
        self._writer.finish(index)
        found = Passport(
            version=VERSION,
            tokenizer_sha256=self.tokenizer.sha256,
            vocab_size=self.tokenizer.vocab_size,
            eod_id=self.tokenizer.eod_id,
            append_eod=self.append_eod,
            documents=self.documents,
            tokens=self.tokens,
            bin_bytes=data.stat().st_size,
            bin_sha256=sha256_of(data),
            idx_bytes=index.stat().st_size,
            idx_sha256=sha256_of(index),
        )
        write_passport(passport, found)
        for path in self._temporary.values():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        return found

    def commit(self) -> None:
        """Give the files their names: the old passport goes first, the new one comes last."""
        passport_path(self.prefix).unlink(missing_ok=True)
        for ending in ENDINGS:
            os.replace(self._temporary[ending], f"{self.prefix}{ending}")

    def discard(self) -> None:
        """Remove whatever is still under a temporary name."""
        with contextlib.suppress(OSError):  # the disk is full: what could not be written is removed now anyway
            self._writer.close()
        for path in self._temporary.values():
            path.unlink(missing_ok=True)

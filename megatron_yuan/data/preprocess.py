"""From text to token ids on disk: PREFIX_KEY_document.bin and .idx for each key, and a passport beside them.

Order out is order in, and the bytes are the same for any number of workers: documents are read one after another,
encoded in batches by SentencePiece's own threads, and written as they come. Files get their names when all is written.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_yuan.data.passport import VERSION, Passport, passport_path, sha256_of, write_passport
from megatron_yuan.data.readers import Document, check_inputs, read_documents
from megatron_yuan.data.tokenizer import Tokenizer
from megatron_yuan.errors import DataError

BATCH_BYTES = 4 * 2**20  # of input text encoded at a time: bounds memory, and is enough for all threads
ENDINGS = (".bin", ".idx", ".json")


@dataclass(frozen=True)
class Progress:
    """How far preprocessing has come."""

    documents: int
    input_bytes: int
    tokens: int
    seconds: float


def preprocess(
    inputs: Sequence[str],
    output_prefix: str,
    tokenizer: Tokenizer,
    append_eod: bool,
    keys: Sequence[str] = ("text",),
    workers: int = 1,
    overwrite: bool = False,
    report: Callable[[Progress], None] = lambda progress: None,
) -> list[Passport]:
    """Encode every document of `inputs`; returns a passport for each key. Raises DataError; then nothing is left."""
    paths = check_inputs(inputs)
    if workers < 1:
        raise DataError(f"workers is {workers}; at least 1 is needed. Fix: --workers 1 or more.")
    prefixes = [Path(f"{output_prefix}_{key}_document") for key in keys]
    for prefix, ending in itertools.product(prefixes, ENDINGS):
        if not overwrite and Path(f"{prefix}{ending}").exists():
            raise DataError(f"output {prefix}{ending} exists already. Fix: another --output-prefix, or --overwrite.")
    prefixes[0].parent.mkdir(parents=True, exist_ok=True)
    pending = [_Pending(prefix, tokenizer, append_eod) for prefix in prefixes]
    try:
        _encode_all(pending, paths, keys, tokenizer, workers, report)
        passports = [each.finish() for each in pending]
        for each in pending:
            each.commit()
        return passports
    finally:
        for each in pending:
            each.discard()


def _encode_all(
    pending: Sequence[_Pending],
    paths: Sequence[Path],
    keys: Sequence[str],
    tokenizer: Tokenizer,
    workers: int,
    report: Callable[[Progress], None],
) -> None:
    started = time.monotonic()
    documents = input_bytes = 0
    for batch in _batches(read_documents(paths, keys)):
        for each, texts in zip(pending, zip(*(d.texts for d in batch), strict=True), strict=True):
            for ids in tokenizer.encode_batch(texts, workers):
                each.add(ids)
        documents, input_bytes = documents + len(batch), input_bytes + sum(d.input_bytes for d in batch)
        report(Progress(documents, input_bytes, pending[0].tokens, time.monotonic() - started))
    if documents == 0:
        raise DataError(f"input {', '.join(map(str, paths))} holds no documents. Fix: name files with some.")


def _batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += document.input_bytes
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class _Pending:
    """A pair in the making, under temporary names beside its final ones."""

    def __init__(self, prefix: Path, tokenizer: Tokenizer, append_eod: bool) -> None:
        from megatron_yuan.mcore.indexed import IndexedWriter  # seconds to import; checks come first

        self.prefix, self.tokenizer, self.append_eod = prefix, tokenizer, append_eod
        self.documents = self.tokens = 0
        self._temporary = {ending: prefix.with_name(f".{prefix.name}{ending}.{os.getpid()}") for ending in ENDINGS}
        # uint16 where every id fits, as Megatron-LM chooses.
        self._writer = IndexedWriter(
            self._temporary[".bin"], np.dtype(np.uint16 if tokenizer.vocab_size < 65_500 else np.int32)
        )

    def add(self, ids: list[int]) -> None:
        """Append one document; one without any text leaves nothing."""
        if not ids:
            return
        if self.append_eod:
            ids.append(self.tokenizer.eod_id)
        self._writer.add(ids)
        self.documents, self.tokens = self.documents + 1, self.tokens + len(ids)

    def finish(self) -> Passport:
        """Write index and passport, still under temporary names."""
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
        return found

    def commit(self) -> None:
        """Give the files their names: the old passport goes first, the new one comes last."""
        passport_path(self.prefix).unlink(missing_ok=True)
        for ending in ENDINGS:
            os.replace(self._temporary[ending], f"{self.prefix}{ending}")

    def discard(self) -> None:
        """Remove whatever is still under a temporary name."""
        for path in self._temporary.values():
            path.unlink(missing_ok=True)

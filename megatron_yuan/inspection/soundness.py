"""One pair held against its passport, every byte of it read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from megatron_yuan.config.schema import DataConfig
from megatron_yuan.data.datasets import Sources
from megatron_yuan.data.index_file import check_bounds, read_index
from megatron_yuan.data.tokenizer import Tokenizer
from megatron_yuan.data.verify import verify_sources
from megatron_yuan.errors import DataError
from megatron_yuan.inspection.documents import Documents


def verify_pair(prefix: str, tokenizer: Tokenizer | None, nowhere: Path, say: Callable[[str], None]) -> None:
    """Say what was found; DataError where the pair is not what its passport says, or not sound in itself.

    `nowhere`: an empty folder, so that nothing which a run remembers of the files spares the reading.
    """
    documents = Documents(prefix, tokenizer)
    source, passport = documents.source, documents.passport
    check_bounds(source.index, read_index(source.index))
    made_by = passport or tokenizer
    if made_by is None:
        raise DataError(
            f"{prefix} has no passport (PREFIX.json), so there is nothing to hold it against. "
            "Fix: --tokenizer-model FILE to see at least whether its ids are the tokenizer's."
        )
    eod_id, vocab_size = made_by.eod_id, made_by.vocab_size
    if passport is not None and tokenizer is not None and tokenizer.eod_id != eod_id:
        raise DataError(
            f"{prefix} ends a document with {eod_id}, but <eod> of {tokenizer.path} is {tokenizer.eod_id}. "
            "Fix: the data's own tokenizer, or preprocess again."
        )
    sources = Sources([source], [], "1,0,0", "0,1,0", eod_id, passports={prefix: passport})
    found = verify_sources(sources, replace(DataConfig(), data_cache_path=str(nowhere)), vocab_size, say)[0]
    ended = _ended(documents, eod_id)
    if passport is not None and passport.append_eod and ended < len(documents):
        raise DataError(
            f"{prefix}: {len(documents) - ended:,} of {len(documents):,} documents do not end with {eod_id}, which its "
            "passport says is <eod>. Fix: preprocess again."
        )
    say(
        f"{prefix}: {len(documents):,} documents, {source.tokens:,} tokens, all ids below {vocab_size:,}; "
        f"{ended:,} documents end in <eod> ({eod_id})"
    )
    for ending, sha256 in ((".bin", found.bin_sha256), (".idx", found.idx_sha256)):
        say(f"{ending} sha256 {sha256}" + (", as its passport says" if passport is not None else ""))


def _ended(documents: Documents, eod_id: int) -> int:
    lengths = np.asarray(documents.lengths)
    last = np.cumsum(lengths, dtype=np.int64)[lengths > 0] - 1
    return int(np.count_nonzero(np.memmap(documents.source.data, documents.source.dtype, "r")[last] == eod_id))

"""Lines of input to token ids, by one process or many: results come in the order of the lines either way."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_yuan.data.readers import Lines, parse_lines
from megatron_yuan.data.tokenizer import Tokenizer
from megatron_yuan.errors import DataError

QUEUED = 4  # batches in flight for each worker: enough that none waits, little enough to stay small


@dataclass(frozen=True)
class Encoded:
    """What came of one batch of lines, for one key."""

    ids: np.ndarray
    """Of all documents, one after another."""
    lengths: np.ndarray
    """Tokens of each document, none 0."""
    left_out: int
    """Documents without any text."""


class Encoder:
    """Makes ids of lines. It holds a tokenizer and is made once in each process."""

    def __init__(self, tokenizer_model: Path, keys: Sequence[str], append_eod: bool) -> None:
        self.tokenizer = Tokenizer(tokenizer_model)
        self.keys, self.append_eod = list(keys), append_eod
        self.dtype = smallest_dtype(self.tokenizer.vocab_size)

    def encode(self, batch: Lines) -> list[Encoded]:
        """One `Encoded` for each key."""
        ids: list[list[int]] = [[] for _ in self.keys]
        lengths: list[list[int]] = [[] for _ in self.keys]
        left_out = [0 for _ in self.keys]
        for texts in parse_lines(batch, self.keys):
            for i, text in enumerate(texts):
                document = self.tokenizer.encode(text)
                if not document:
                    left_out[i] += 1
                    continue
                if self.append_eod:
                    document.append(self.tokenizer.eod_id)
                ids[i] += document
                lengths[i].append(len(document))
        return [
            Encoded(np.array(ids[i], self.dtype), np.array(lengths[i], np.int32), left_out[i])
            for i in range(len(self.keys))
        ]


def smallest_dtype(vocab_size: int) -> np.dtype:
    """uint16 where every id fits, else int32, with Megatron-LM's bound."""
    return np.dtype(np.uint16 if vocab_size < 65_500 else np.int32)


def encode_in_order(
    batches: Iterable[Lines], tokenizer_model: Path, keys: Sequence[str], append_eod: bool, workers: int
) -> Iterator[tuple[Lines, list[Encoded]]]:
    """Each batch and what came of it, in the order of `batches`; more than one worker are processes of their own."""
    if workers == 1:
        encoder = Encoder(tokenizer_model, keys, append_eod)
        for batch in batches:
            yield batch, encoder.encode(batch)
        return
    # Spawned, as a fork of a process with threads (torch has some) may hang.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, _start_worker, (tokenizer_model, keys, append_eod))
    waiting: deque[tuple[Lines, Future[list[Encoded]]]] = deque()
    try:
        for batch in batches:
            waiting.append((batch, pool.submit(_encode, batch)))
            if len(waiting) >= QUEUED * workers:
                oldest, result = waiting.popleft()
                yield oldest, result.result()
        while waiting:
            oldest, result = waiting.popleft()
            yield oldest, result.result()
    except BrokenProcessPool:
        raise DataError(
            f"workers {workers}: one of the processes was ended from outside, perhaps for want of memory. "
            "Fix: fewer --workers."
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_encoder: Encoder | None = None  # of this worker process


def _start_worker(tokenizer_model: Path, keys: Sequence[str], append_eod: bool) -> None:
    global _encoder
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _encoder = Encoder(tokenizer_model, keys, append_eod)


def _end_with_parent() -> None:
    """A worker whose parent was killed outright would wait for work without end: it holds both ends of the queue."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _encode(batch: Lines) -> list[Encoded]:
    assert _encoder is not None
    return _encoder.encode(batch)

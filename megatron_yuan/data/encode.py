"""Rows of input to token ids, by one process or many: results come in the order of the rows either way."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from megatron_yuan.data.parse import Document, Reject, RejectError, check_fit, empty, parse_batch
from megatron_yuan.data.readers import Batch
from megatron_yuan.data.segments import Segments
from megatron_yuan.data.tokenizer import Tokenizer
from megatron_yuan.errors import DataError

QUEUED = 4  # batches in flight for each worker: enough that none waits, little enough to stay small


@dataclass(frozen=True)
class Part:
    """A slice of a text too long for one go."""

    key: int
    """Number of the key."""
    text: str
    continued: bool
    """The text began in a slice before."""
    last: bool
    """The text ends here."""


@dataclass(frozen=True)
class Encoded:
    """What came of some documents, for one key."""

    ids: np.ndarray
    """Of all documents, one after another."""
    lengths: np.ndarray
    """Tokens of each document, none 0."""
    text_bytes: int
    """Of the texts, in UTF-8."""
    ended: bool = True
    """False: the last document goes on in the next."""


@dataclass(frozen=True)
class Result:
    """What came of a batch or a part."""

    encoded: dict[int, Encoded] = field(default_factory=dict)
    """For each key, by its number."""
    rejects: list[Reject] = field(default_factory=list)


Task = Batch | Part | Result
"""A Result is one already."""


class Encoder:
    """Makes ids of rows. It holds a tokenizer and is made once in each process."""

    def __init__(self, tokenizer: Tokenizer, keys: Sequence[str], append_eod: bool) -> None:
        self.tokenizer, self.keys = tokenizer, list(keys)
        self.segments = Segments(tokenizer, smallest_dtype(tokenizer.vocab_size))
        self._eod = [tokenizer.eod_id] if append_eod else []

    def run(self, task: Task) -> Result:
        """Do one task."""
        if isinstance(task, Batch):
            return self._encode_batch(task)
        if isinstance(task, Part):
            ids, lengths = self._encode([task.text], task.continued, ends=task.last)
            return Result({task.key: Encoded(ids, lengths, len(task.text.encode()), task.last)})
        return task

    def _encode_batch(self, batch: Batch) -> Result:
        documents: list[Document] = []
        rejects: list[Reject] = []
        for found in parse_batch(batch, self.keys):
            if isinstance(found, Reject):
                rejects.append(found)
                continue
            try:
                check_fit(found[1])
                documents.append(found)
            except RejectError as error:
                rejects.append(Reject(found[0], error.reason, error.why))
        while True:
            encoded = {i: self._encode([texts[i] for _, texts in documents]) for i in range(len(self.keys))}
            bare = np.any([lengths <= len(self._eod) for _, lengths in encoded.values()], axis=0)
            if not bare.any():
                break
            # Some models make nothing of blanks.
            rejects += [Reject(documents[i][0], "empty", empty().why) for i in np.flatnonzero(bare)]
            documents = [each for each, drop in zip(documents, bare, strict=True) if not drop]
        sizes = [sum(len(texts[i].encode()) for _, texts in documents) for i in range(len(self.keys))]
        return Result(
            {i: Encoded(*encoded[i], sizes[i]) for i in encoded}, sorted(rejects, key=lambda reject: reject.row)
        )

    def _encode(
        self, texts: Sequence[str], continued: bool = False, ends: bool = True
    ) -> tuple[np.ndarray, np.ndarray]:
        """Ids of `texts` and the number of them in each."""
        runs: list[str] = []
        specials: list[int] = []
        before: list[int] = []  # runs before each special token
        ended: list[tuple[int, int]] = []  # runs and special tokens up to each text's end
        for text in texts:
            for part in self.tokenizer.split(text):
                if isinstance(part, int):
                    specials.append(part)
                    before.append(len(runs))
                else:
                    runs.append(part)
            if ends:
                specials += self._eod
                before += [len(runs)] * len(self._eod)
            ended.append((len(runs), len(specials)))
        ids, counts = self.segments.encode(runs, continued and not (before and before[0] == 0))
        bounds = np.concatenate(([0], np.cumsum(counts)))
        ids = np.insert(ids, bounds[before], np.array(specials, ids.dtype)) if specials else ids
        ends_at = np.array([bounds[run] + special for run, special in ended], np.int64)
        return ids, np.diff(ends_at, prepend=0).astype(np.int32)


def smallest_dtype(vocab_size: int) -> np.dtype:
    """uint16 where every id fits, else int32, with Megatron-LM's bound."""
    return np.dtype(np.uint16 if vocab_size < 65_500 else np.int32)


def encode_in_order(
    tasks: Iterable[tuple[Batch, bool, Task]], encoder: Encoder, append_eod: bool, workers: int
) -> Iterator[tuple[Batch, bool, Result]]:
    """What came of each task, beside what came with it, in order; more than one worker are processes of their own."""
    if workers == 1:
        for batch, done, task in tasks:
            yield batch, done, encoder.run(task)
        return
    global _encoder
    _encoder = encoder
    context = multiprocessing.get_context(_start_method())
    pool = ProcessPoolExecutor(workers, context, _start_worker, (encoder.tokenizer.path, encoder.keys, append_eod))
    waiting: deque[tuple[Batch, bool, Future[Result]]] = deque()
    try:
        for batch, done, task in tasks:
            waiting.append((batch, done, pool.submit(_run, task)))
            if len(waiting) >= QUEUED * workers:
                yield _oldest(waiting)
        while waiting:
            yield _oldest(waiting)
    except BrokenProcessPool:
        raise DataError(
            f"workers {workers}: one of the processes was ended from outside, perhaps for want of memory. "
            "Fix: fewer --workers, with --resume."
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_method() -> str:
    """A fork begins at once, with the tables of the parent; of a process with threads (torch has some) it may hang."""
    alone = threading.active_count() == 1 and "torch" not in sys.modules
    return "fork" if sys.platform == "linux" and alone else "spawn"


def _oldest(waiting: deque[tuple[Batch, bool, Future[Result]]]) -> tuple[Batch, bool, Result]:
    batch, done, result = waiting.popleft()
    return batch, done, result.result()


_encoder: Encoder | None = None  # of this process; a worker that was forked has its parent's


def _start_worker(tokenizer_model: Path, keys: Sequence[str], append_eod: bool) -> None:
    global _encoder
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _encoder = _encoder or Encoder(Tokenizer(tokenizer_model), keys, append_eod)


def _end_with_parent() -> None:
    """A worker whose parent was killed outright would wait for work without end: it holds both ends of the queue."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _run(task: Task) -> Result:
    assert _encoder is not None
    return _encoder.run(task)

"""The work of preprocessing in tasks for its processes: batches of rows, and long rows in parts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from megatron_yuan.data.digest import sha256_of
from megatron_yuan.data.encode import Encoder, Part, Result, Task
from megatron_yuan.data.inputs import Input
from megatron_yuan.data.journal import Journal
from megatron_yuan.data.long_text import LongText, parse_long
from megatron_yuan.data.parse import LONG_BYTES, Reject, RejectError, clean_line
from megatron_yuan.data.readers import Batch, read_batches
from megatron_yuan.data.segments import Segments
from megatron_yuan.errors import DataError


def tasks_of(batches: Iterator[Batch], encoder: Encoder) -> Iterator[tuple[Batch, bool, Task]]:
    """Each task, the batch that it is of, and whether the batch is done with it."""
    for batch in batches:
        if not (encoder.segments.sound and batch.rows and _is_long(batch.rows[-1])):
            yield batch, True, batch
            continue
        *before, row = batch.rows
        number = batch.first + len(before)
        batch.rows.clear()  # a long row is in memory once
        if before:
            yield batch, False, replace(batch, rows=before)
        if isinstance(row, bytes):
            row = clean_line(row, number)
        try:
            texts = parse_long(row, batch.source.kind, encoder.keys) if row else ()
        except RejectError as error:
            yield batch, True, Result(rejects=[Reject(number, error.reason, error.why)])
            continue
        del row
        for key, text in enumerate(texts):
            for part in _parts(key, text, encoder.segments):
                yield batch, False, part
        yield batch, True, Result()


def _is_long(row: bytes | tuple[object, ...]) -> bool:
    values = row if isinstance(row, tuple) else (row,)
    return any(isinstance(value, bytes) and len(value) > LONG_BYTES for value in values)


def _parts(key: int, text: LongText, segments: Segments) -> Iterator[Part]:
    left, continued = "", False
    for piece in text.slices():
        looked_through = max(0, len(left) - 1)
        left += piece
        cut = segments.last_cut(left, looked_through)
        if cut:
            yield Part(key, left[:cut], continued, last=False)
            left, continued = left[cut:], True
    yield Part(key, left, continued, last=True)


def unread_batches(inputs: Sequence[Input], keys: Sequence[str], journal: Journal) -> Iterator[Batch]:
    """The batches after those that `journal` tells of. DataError where what was read before is no longer the same."""
    for source, sha256 in zip(inputs, journal.files, strict=False):
        check_unchanged(source, sha256)
    batches = read_batches(inputs, keys, len(journal.files))
    for _ in range(journal.batches):
        batch = next(batches, None)
        if batch is None or batch.number != len(journal.files):
            raise _changed(inputs[len(journal.files)])
        if batch.index == journal.batches - 1 and batch.sha256 != journal.sha256:
            raise _changed(batch.source)
    yield from batches


def check_unchanged(source: Input, sha256: str | None) -> None:
    """DataError where the file is no longer the one that was read before."""
    try:
        found = sha256_of(source.path)
    except OSError as error:
        raise DataError(f"input {source.path} cannot be read ({error.strerror}). Fix: see to the file.") from None
    if found != sha256:
        raise _changed(source)


def _changed(source: Input) -> DataError:
    return DataError(
        f"input {source.path} has changed since the run that --resume goes on with. Fix: put it back; or begin anew, "
        "with --overwrite and without --resume."
    )

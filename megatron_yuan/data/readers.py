"""Rows of input files, in order: lines of jsonl and txt, plain or packed, and the rows of parquet.

Rows are read in batches, so that many processes can share the work of making text of them. The same file always gives
the same batches, and each batch tells what was read so far: work that was broken off goes on at the batch it had
reached, and knows that the file is still the one it was.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import zlib
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from megatron_yuan.data.inputs import Input
from megatron_yuan.errors import DataError

BATCH_BYTES = 2**20
CHUNK_BYTES = 2**18  # read from the disk in one go
ZSTD_BYTES = 2**11  # unpacked in one go: four bytes can stand for 128 KiB, so this for 64 MiB
PARQUET_ROWS, PARQUET_BYTES = 64, 2**23  # made of columns in one go, at most; about

Row = bytes | tuple[Any, ...]
"""A line, or of parquet the value of each key: bytes, or whatever else is wrongly there."""


@dataclass(frozen=True)
class Batch:
    """Some consecutive rows of one file."""

    source: Input
    number: int
    """Of the file among all inputs, from 0."""
    index: int
    """Of the batch in its file, from 0."""
    first: int
    """Number of the first row; the file's first is 1."""
    rows: list[Row]
    size: int
    """Bytes in `rows`."""
    taken: int
    """Bytes of the file taken from the disk so far, packed as they lie there; of a table, in proportion to its rows."""
    sha256: str
    """Of those bytes; of a table always the whole file's."""
    last: bool
    """Nothing follows in the file; `taken` and `sha256` are then of the whole of it."""


def read_batches(inputs: Sequence[Input], keys: Sequence[str], start: int = 0) -> Iterator[Batch]:
    """All rows of all inputs from number `start` on, in order, about BATCH_BYTES at a time; one batch at least of each
    file. Raises DataError for a file that is damaged."""
    for number, source in enumerate(inputs[start:], start):
        try:
            with closing(_Hashed(source.path)) as raw:
                rows = _parquet_rows(raw, keys) if source.kind == "parquet" else iter(_open_lines(raw, source))
                yield from _in_batches(source, number, raw, rows)
        except (gzip.BadGzipFile, EOFError, zlib.error, _ZstdError) as error:
            raise DataError(
                f"input {source.path} is not whole {'gzip' if source.packing == '.gz' else 'zstd'} ({error}). "
                "Fix: make or fetch it again."
            ) from None
        except OSError as error:
            raise DataError(
                f"input {source.path} cannot be read ({error.strerror or error}). Fix: see to the file."
            ) from None


def _in_batches(source: Input, number: int, raw: _Hashed, rows: Iterator[Row]) -> Iterator[Batch]:
    gathered: list[Row] = []
    size, first, index = 0, 1, 0
    for row in rows:
        gathered.append(row)
        size += _size(row)
        if size >= BATCH_BYTES:
            following = first + len(gathered)  # counted now: the batch's owner may empty the list
            yield Batch(source, number, index, first, gathered, size, raw.taken, raw.hexdigest(), last=False)
            # The old list is the batch's; it goes as soon as that does.
            first, index, gathered, size = following, index + 1, [], 0
    raw.drain()
    yield Batch(source, number, index, first, gathered, size, raw.taken, raw.hexdigest(), last=True)


def _size(row: Row) -> int:
    return len(row) if isinstance(row, bytes) else sum(len(each) for each in row if isinstance(each, bytes))


class _Hashed(io.RawIOBase):
    """A file that hashes what is read from it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115  (it is closed with this)
        self._digest = hashlib.sha256()
        self.taken = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._file.readinto(buffer) or 0
        self._digest.update(memoryview(buffer)[:count])
        self.taken += count
        return count

    def drain(self) -> None:
        """Read what is left."""
        buffer = bytearray(CHUNK_BYTES)
        while self.readinto(buffer):
            pass

    def hexdigest(self) -> str:
        """Of all that was read."""
        return self._digest.copy().hexdigest()

    def close(self) -> None:
        self._file.close()
        super().close()


def _open_lines(raw: _Hashed, source: Input) -> IO[bytes]:
    if not source.packing:
        return io.BufferedReader(raw, CHUNK_BYTES)
    if not source.path.stat().st_size:
        raise EOFError("it is empty")
    if source.packing == ".gz":
        # GzipFile is made to be used as a file, though its type is another.
        return cast("IO[bytes]", gzip.GzipFile(fileobj=io.BufferedReader(raw, CHUNK_BYTES)))
    return io.BufferedReader(_Unzstd(raw), CHUNK_BYTES)


class _ZstdError(Exception):
    pass


class _Unzstd(io.RawIOBase):
    """Unpacks zstd, one frame after another. zstandard's own reader takes a file that was cut off for a whole one."""

    def __init__(self, raw: _Hashed) -> None:
        zstandard = _library("zstandard", raw.path)
        self._error = zstandard.ZstdError
        self._new = lambda: zstandard.ZstdDecompressor(max_window_size=2**31).decompressobj()
        self._frame, self._begun = self._new(), False
        self._raw, self._packed, self._ready = raw, memoryview(b""), memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            while not self._ready:
                self._packed = self._packed or memoryview(self._raw.read(CHUNK_BYTES) or b"")
                if not self._packed:
                    if self._begun:
                        raise _ZstdError("it ends too early")
                    return 0
                self._unpack()
        except self._error as error:
            raise _ZstdError(str(error).strip() or "damaged") from None
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def _unpack(self) -> None:
        given = self._packed[:ZSTD_BYTES]
        self._ready, self._begun = memoryview(self._frame.decompress(given)), True
        used = len(given)
        if self._frame.eof:
            used -= len(self._frame.unused_data)
            self._frame, self._begun = self._new(), False
        self._packed = self._packed[used:]


def _parquet_rows(raw: _Hashed, keys: Sequence[str]) -> Iterator[Row]:
    arrow = _library("pyarrow", raw.path)
    parquet = _library("pyarrow.parquet", raw.path)
    raw.drain()  # which a table does not read in order; what counts as taken is then the rows' share of it
    whole, rows = raw.taken, 0
    try:
        with parquet.ParquetFile(
            raw.path, buffer_size=CHUNK_BYTES, pre_buffer=False, page_checksum_verification=True
        ) as file:
            _check_columns(file.schema_arrow, raw.path, keys, arrow)
            for batch in file.iter_batches(_rows_at_once(file.metadata), columns=list(keys), use_threads=False):
                rows += batch.num_rows
                raw.taken = whole * rows // max(file.metadata.num_rows, 1)
                columns = [_values(batch.column(key), arrow) for key in keys]
                yield from zip(*columns, strict=True)
        raw.taken = whole
    except (arrow.ArrowException, OSError, ValueError, TypeError) as error:
        said = " ".join(str(error).split())[:200]
        raise DataError(f"input {raw.path} is not whole parquet ({said}). Fix: make or fetch it again.") from None


def _rows_at_once(metadata: Any) -> int:
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    largest = max((group.total_byte_size // max(group.num_rows, 1) for group in groups), default=0)
    return max(1, min(PARQUET_ROWS, PARQUET_BYTES // max(largest, 1)))


def _values(column: Any, arrow: Any) -> list[bytes | None]:
    if arrow.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    return column.cast(arrow.large_binary()).to_pylist()


def _check_columns(schema: Any, path: Path, keys: Sequence[str], arrow: Any) -> None:
    kinds = arrow.types
    for key in keys:
        if (count := schema.names.count(key)) != 1:
            raise DataError(
                f"input {path} has {f'{count} columns' if count else 'no column'} {key!r}; its columns are "
                f"{', '.join(schema.names) or 'none'}. Fix: --json-keys KEY."
            )
        kind = schema.field(key).type
        if kinds.is_dictionary(kind):
            kind = kind.value_type
        texts = kinds.is_string, kinds.is_large_string, kinds.is_string_view
        if not any(check(kind) for check in (*texts, kinds.is_binary, kinds.is_large_binary, kinds.is_binary_view)):
            raise DataError(f"input {path}: column {key!r} holds {kind}, not text. Fix: --json-keys KEY.")


def _library(name: str, path: Path) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError:
        package = name.partition(".")[0]
        raise DataError(f"input {path} needs {package}. Fix: pip install 'megatron-yuan[data]'.") from None

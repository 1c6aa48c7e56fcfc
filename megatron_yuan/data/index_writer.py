"""Writes megatron's .idx from the lengths of documents, however many there are, in little memory."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np

from megatron_yuan.data.index_file import DTYPES, MAGIC

STRIDE = 2**20  # documents in memory at a time


def write_index(index: Path, lengths: Path, dtype: np.dtype) -> None:
    """`lengths`: a file of int32, the tokens of each document, each one sequence. Raises OSError."""
    documents = lengths.stat().st_size // 4
    code = next(code for code, kind in DTYPES.items() if kind == dtype.type)
    with open(lengths, "rb") as source, open(index, "wb") as file:
        file.write(MAGIC + struct.pack("<QBQQ", 1, code, documents, documents + 1))
        for part in _parts(source):
            file.write(part.tobytes())
        offset = 0
        for part in _parts(source):
            ends = offset + np.cumsum(part, dtype=np.int64) * dtype.itemsize
            file.write((ends - part.astype(np.int64) * dtype.itemsize).tobytes())
            offset = int(ends[-1])
        for start in range(0, documents + 1, STRIDE):
            file.write(np.arange(start, min(start + STRIDE, documents + 1), dtype=np.int64).tobytes())


def _parts(source: IO[bytes]) -> Iterator[np.ndarray]:
    source.seek(0)
    while data := source.read(4 * STRIDE):
        yield np.frombuffer(data, np.int32)

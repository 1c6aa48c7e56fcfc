"""megatron's .idx file: the token type of its .bin, the length of every document, and where each begins."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from megatron_yuan.errors import DataError

HEADER_BYTES = 9 + 8 + 1 + 8 + 8  # magic, version, dtype code, number of sequences, number of documents
MAGIC = b"MMIDIDX\x00\x00"
DTYPES = {1: np.uint8, 2: np.int8, 3: np.int16, 4: np.int32, 5: np.int64, 8: np.uint16}
STRIDE = 2**20  # documents looked at in one go


class IndexFile(NamedTuple):
    """What an .idx says; the arrays lie on the disk, and are read as far as they are used."""

    dtype: np.dtype
    """Of a token."""
    lengths: np.ndarray
    """Tokens of each sequence [n], int32."""
    offsets: np.ndarray
    """Where each begins in the .bin, in bytes [n], int64."""
    bounds: np.ndarray
    """Number of the sequence at which each document begins, and of the last one's end, int64."""

    @property
    def documents(self) -> int:
        """Their number."""
        return len(self.bounds) - 1

    @property
    def tokens(self) -> int:
        """In all, by the end of the last sequence."""
        if not len(self.lengths):
            return 0
        return int(self.offsets[-1]) // self.dtype.itemsize + int(self.lengths[-1])


def read_index(index: Path) -> IndexFile:
    """Open a megatron .idx file; its size and its header are checked. Raises DataError."""
    try:
        size = index.stat().st_size
        with open(index, "rb") as file:
            header = file.read(HEADER_BYTES)
    except OSError as error:
        raise DataError(f"{index} cannot be read ({error.strerror}). Fix: see to the file's rights.") from None
    if len(header) < HEADER_BYTES or header[:9] != MAGIC:
        raise DataError(f"{index} is not a megatron index (its first bytes differ). Fix: preprocess the data again.")
    code = header[17]
    sequences, bounds = (int(n) for n in np.frombuffer(header, np.uint64, 2, offset=18))
    version = int.from_bytes(header[9:17], "little")
    if version != 1 or code not in DTYPES or bounds < 1 or size != HEADER_BYTES + sequences * (4 + 8) + bounds * 8:
        raise DataError(
            f"{index} is truncated or damaged: {size} bytes for {sequences} sequences. Fix: preprocess again."
        )
    lengths, offsets = np.zeros(0, np.int32), np.zeros(0, np.int64)
    if sequences:
        lengths = np.memmap(index, np.int32, "r", offset=HEADER_BYTES, shape=(sequences,))
        offsets = np.memmap(index, np.int64, "r", offset=HEADER_BYTES + lengths.nbytes, shape=(sequences,))
    starts = np.memmap(index, np.int64, "r", offset=HEADER_BYTES + lengths.nbytes + offsets.nbytes, shape=(bounds,))
    return IndexFile(np.dtype(DTYPES[code]), lengths, offsets, starts)


def check_bounds(index: Path, found: IndexFile) -> None:
    """DataError unless each sequence begins where the one before it ends, and so do documents."""
    if not _sound(found):
        raise DataError(f"{index} is damaged: its sequences do not follow one another. Fix: preprocess again.")


def lengths_of(prefix: str) -> np.ndarray:
    """Tokens of each sequence of a pair [n], int32."""
    return np.asarray(read_index(Path(prefix + ".idx")).lengths)


def _sound(found: IndexFile) -> bool:
    lengths, offsets, bounds = found.lengths, found.offsets, found.bounds
    if bounds[0] != 0 or bounds[-1] != len(lengths) or (len(offsets) and offsets[0] != 0):
        return False
    for start in range(0, len(lengths), STRIDE):
        here, next_ = offsets[start : start + STRIDE], offsets[start + 1 : start + STRIDE + 1]
        sizes = lengths[start : start + STRIDE].astype(np.int64) * found.dtype.itemsize
        if sizes.min() < 0 or not np.array_equal(here[: len(next_)] + sizes[: len(next_)], next_):
            return False
    parts = (bounds[start : start + STRIDE + 1] for start in range(0, len(bounds), STRIDE))
    return all((part[1:] >= part[:-1]).all() for part in parts)

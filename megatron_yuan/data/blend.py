"""The sets a run reads: their prefixes and weights, checked before anything is built."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_yuan.errors import DataError

HEADER_BYTES = 9 + 8 + 1 + 8 + 8  # magic, version, dtype code, number of sequences, number of documents
MAGIC = b"MMIDIDX\x00\x00"
DTYPES = {1: np.uint8, 2: np.int8, 3: np.int16, 4: np.int32, 5: np.int64, 8: np.uint16}
SMALLEST_SHARE = 1e-12  # of a blend
SCAN_TOKENS = 2**24  # ids looked at in one go


@dataclass(frozen=True)
class Source:
    """One .bin/.idx pair and its weight in the blend."""

    prefix: str
    weight: float
    documents: int
    tokens: int
    dtype: np.dtype
    fingerprint: str
    """Changes when the pair is made anew: sizes and times of both files."""

    @property
    def name(self) -> str:
        """Short name for reports: the file's name without the usual ending."""
        return Path(self.prefix).name.removesuffix("_document").removesuffix("_text")


def parse_blend(setting: str, entries: Sequence[str]) -> list[Source]:
    """PREFIX, or W1 PREFIX1 W2 PREFIX2 ...; without weights, sets count by their tokens.

    `setting` is the flag's name, for errors. Raises DataError for a missing, empty or damaged pair or a bad weight.
    """
    weighted = len(entries) > 1 and all(_is_number(entry) for entry in entries[::2])
    if weighted and len(entries) % 2:
        raise DataError(
            f"{setting} {' '.join(entries)} has an odd number of entries. "
            "Fix: write W1 PREFIX1 W2 PREFIX2 ..., or prefixes alone."
        )
    prefixes = list(entries[1::2] if weighted else entries)
    places = [Path(prefix).resolve() for prefix in prefixes]
    for i, prefix in enumerate(prefixes):
        if places[i] in places[:i]:
            raise DataError(f"{setting} names {prefix} twice. Fix: name it once, with the sum of its weights.")
    weights = [float(entry) for entry in entries[::2]] if weighted else [math.nan] * len(prefixes)
    if weighted and not (all(math.isfinite(w) and w >= 0 for w in weights) and sum(weights) > 0):
        raise DataError(
            f"{setting} has weights {', '.join(map(str, weights))}; each must be 0 or more, and one above 0. "
            "Fix: mend them."
        )
    lost = [w for w in weights if w > 0 and w / sum(weights) < SMALLEST_SHARE]
    if lost:
        raise DataError(
            f"{setting} gives weight {lost[0]} of {sum(weights)} in all, a share too small to draw a sample by. "
            "Fix: drop that set, or raise its weight."
        )
    return [open_source(setting, p, w) for p, w in zip(prefixes, weights, strict=True) if w != 0]


def open_source(setting: str, prefix: str, weight: float) -> Source:
    """Read and check the index of one pair; NaN weight: count by tokens."""
    index, data = Path(prefix + ".idx"), Path(prefix + ".bin")
    for file in (index, data):
        if not file.is_file():
            raise DataError(
                f"{setting} {prefix}: {file} does not exist. Fix: give the prefix without .bin or .idx, as made by "
                "tools/preprocess_data.py --output-prefix."
            )
    dtype, lengths, documents = read_index(index)
    tokens = int(lengths.sum(dtype=np.int64))
    if tokens == 0:
        raise DataError(
            f"{setting} {prefix} holds no tokens. Fix: preprocess text that is not empty, or leave the set out."
        )
    expected, size = tokens * dtype.itemsize, data.stat().st_size
    if size != expected:
        raise DataError(
            f"{setting} {prefix}: .bin has {size} bytes, but .idx describes {expected}. "
            "Fix: the pair is damaged or mixed up; preprocess it again."
        )
    _check_bounds(index, dtype, lengths)
    stats = [file.stat() for file in (index, data)]
    fingerprint = "-".join(f"{s.st_size}.{s.st_mtime_ns}" for s in stats)
    return Source(prefix, tokens if math.isnan(weight) else weight, documents, tokens, dtype, fingerprint)


def read_index(index: Path) -> tuple[np.dtype, np.ndarray, int]:
    """Token dtype, tokens of each sequence, and number of documents of a megatron .idx file."""
    size = index.stat().st_size
    with open(index, "rb") as file:
        header = file.read(HEADER_BYTES)
    if len(header) < HEADER_BYTES or header[:9] != MAGIC:
        raise DataError(f"{index} is not a megatron index (its first bytes differ). Fix: preprocess the data again.")
    code = header[17]
    sequences, bounds = (int(n) for n in np.frombuffer(header, np.uint64, 2, offset=18))
    version = int.from_bytes(header[9:17], "little")
    if version != 1 or code not in DTYPES or bounds < 1 or size != HEADER_BYTES + sequences * (4 + 8) + bounds * 8:
        raise DataError(
            f"{index} is truncated or damaged: {size} bytes for {sequences} sequences. Fix: preprocess again."
        )
    lengths = np.memmap(index, np.int32, "r", offset=HEADER_BYTES, shape=(sequences,)) if sequences else np.zeros(0)
    return np.dtype(DTYPES[code]), lengths, bounds - 1


def _check_bounds(index: Path, dtype: np.dtype, lengths: np.ndarray) -> None:
    """Refuse an index unless each sequence begins where the one before it ends, and so do documents."""
    after = HEADER_BYTES + lengths.nbytes
    offsets = np.memmap(index, np.int64, "r", offset=after, shape=lengths.shape)
    documents = np.memmap(index, np.int64, "r", offset=after + offsets.nbytes)
    sound = (
        lengths.min() >= 0
        and offsets[0] == documents[0] == 0
        and documents[-1] == len(lengths)
        and np.array_equal(np.diff(offsets), lengths[:-1].astype(np.int64) * dtype.itemsize)
        and (np.diff(documents) >= 0).all()
    )
    if not sound:
        raise DataError(f"{index} is damaged: its sequences do not follow one another. Fix: preprocess again.")


def check_token_ids(setting: str, source: Source, vocab_size: int) -> None:
    """Look at every id of the set once; one outside the vocabulary is a DataError that says where."""
    ids = np.memmap(source.prefix + ".bin", source.dtype, "r")
    for start in range(0, len(ids), SCAN_TOKENS):
        part = ids[start : start + SCAN_TOKENS]
        if part.max() < vocab_size and part.min() >= 0:
            continue
        bad = int(np.argmax((part >= vocab_size) | (part < 0)))
        raise DataError(
            f"{setting} {source.prefix}: token {start + bad} is id {part[bad]}, but the vocabulary has {vocab_size} "
            "(--vocab-size). Fix: the data was made with another tokenizer, or --vocab-size is too small."
        )


def _is_number(entry: str) -> bool:
    try:
        float(entry)
    except ValueError:
        return False
    return True

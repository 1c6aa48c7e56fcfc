"""The sets a run reads: their prefixes and weights, checked before anything is built."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_yuan.data.index_file import IndexFile, check_bounds, read_index
from megatron_yuan.data.stamp import CACHE, Stamps
from megatron_yuan.errors import DataError

SMALLEST_SHARE = 1e-12  # of a blend


@dataclass(frozen=True)
class Entry:
    """One set as a blend names it."""

    prefix: str
    weight: float | None = None
    """None: by tokens."""
    label: str | None = None
    """Name of the set in reports; unset, its file's."""
    language: str | None = None
    fim: bool | None = None
    """Whether fill-in-the-middle is for this set; None: the blend does not say."""
    max_epochs: float | None = None
    """Warn where the run repeats the set more often; unset, --max-epochs."""


@dataclass(frozen=True)
class Source:
    """One .bin/.idx pair and its weight in the blend."""

    prefix: str
    weight: float
    documents: int
    tokens: int
    dtype: np.dtype
    entry: Entry

    @property
    def name(self) -> str:
        """Short name for reports: the given one, or the file's without the usual ending."""
        return self.entry.label or Path(self.prefix).name.removesuffix("_document").removesuffix("_text")

    @property
    def index(self) -> Path:
        """Its .idx."""
        return Path(self.prefix + ".idx")

    @property
    def data(self) -> Path:
        """Its .bin."""
        return Path(self.prefix + ".bin")


def cache_folder(prefix: str, data_cache_path: str | None) -> Path:
    """Where index files of a set, or of a blend that begins with it, and stamps are kept."""
    return Path(data_cache_path) if data_cache_path else Path(prefix).parent / CACHE


def parse_blend(setting: str, entries: Sequence[str], data_cache_path: str | None = None) -> list[Source]:
    """PREFIX, or W1 PREFIX1 W2 PREFIX2 ...; without weights, sets count by their tokens.

    `setting` is the flag's name, for errors. Raises DataError for a missing, empty or damaged pair or a bad weight.
    """
    return open_entries(setting, read_entries(setting, entries), data_cache_path)


def read_entries(setting: str, entries: Sequence[str]) -> list[Entry]:
    """What PREFIX, or W1 PREFIX1 W2 PREFIX2 ... means."""
    weighted = len(entries) > 1 and all(_is_number(entry) for entry in entries[::2])
    if weighted and len(entries) % 2:
        raise DataError(
            f"{setting} {' '.join(entries)} has an odd number of entries. "
            "Fix: write W1 PREFIX1 W2 PREFIX2 ..., or prefixes alone."
        )
    if not weighted:
        return [Entry(prefix) for prefix in entries]
    return [Entry(prefix, float(weight)) for weight, prefix in zip(entries[::2], entries[1::2], strict=True)]


def open_entries(setting: str, entries: Sequence[Entry], data_cache_path: str | None = None) -> list[Source]:
    """Check the sets of a blend together, and open each that has a weight."""
    said = setting.removesuffix(":")
    places = [Path(entry.prefix).resolve() for entry in entries]
    for i, entry in enumerate(entries):
        if places[i] in places[:i]:
            raise DataError(f"{said} names {entry.prefix} twice. Fix: name it once, with the sum of its weights.")
    given = [entry.weight for entry in entries if entry.weight is not None]
    if 0 < len(given) < len(entries):
        raise DataError(f"{said} gives a weight to some sets and none to others. Fix: give one to each, or to none.")
    if given and not (all(math.isfinite(w) and w >= 0 for w in given) and 0 < sum(given) < math.inf):
        raise DataError(
            f"{said} has weights {', '.join(map(str, given))}; each must be 0 or more, and one above 0. Fix: mend them."
        )
    lost = [w for w in given if w > 0 and w / sum(given) < SMALLEST_SHARE]
    if lost:
        raise DataError(
            f"{said} gives weight {lost[0]} of {sum(given)} in all, a share too small to draw a sample by. "
            "Fix: drop that set, or raise its weight."
        )
    used = [entry for entry in entries if entry.weight != 0]
    return [open_source(setting, each, Stamps(cache_folder(each.prefix, data_cache_path))) for each in used]


def open_source(setting: str, entry: Entry, stamps: Stamps | None = None) -> Source:
    """Read and check the index of one pair: wholly, unless a stamp says that it was found sound."""
    prefix = entry.prefix
    index, data = Path(prefix + ".idx"), Path(prefix + ".bin")
    for file in (index, data):
        if not file.is_file():
            raise DataError(
                f"{setting} {prefix}: {file} does not exist. Fix: give the prefix without .bin or .idx, as made by "
                "tools/preprocess_data.py --output-prefix."
            )
    found, size = read_index(index), data.stat().st_size
    _check_sound(index, found, stamps)
    if found.tokens == 0:
        raise DataError(
            f"{setting} {prefix} holds no tokens. Fix: preprocess text that is not empty, or leave the set out."
        )
    expected = found.tokens * found.dtype.itemsize
    if size != expected:
        raise DataError(
            f"{setting} {prefix}: .bin has {size} bytes, but .idx describes {expected}. "
            "Fix: the pair is damaged or mixed up; preprocess it again."
        )
    weight = found.tokens if entry.weight is None else entry.weight
    return Source(prefix, weight, found.documents, found.tokens, found.dtype, entry)


def _check_sound(index: Path, found: IndexFile, stamps: Stamps | None) -> None:
    if stamps is not None and stamps.recall(index).get("sound"):
        return
    seen = index.stat()
    check_bounds(index, found)
    if stamps is not None and stamps.folder.parent.is_dir():  # which a run makes; to look at data leaves none behind
        stamps.remember(index, seen, {"sound": True})


def names_of(sources: Sequence[Source]) -> list[str]:
    """Short names of sets, or prefixes where short ones are the same."""
    names = [source.name for source in sources]
    return [s.name if names.count(s.name) == 1 else s.prefix for s in sources]


def _is_number(entry: str) -> bool:
    try:
        float(entry)
    except ValueError:
        return False
    return True

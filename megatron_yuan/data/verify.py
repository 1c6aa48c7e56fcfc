"""Whether the data are what their passports say, byte for byte: read once, then remembered by a stamp of the file."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock

import numpy as np

from megatron_yuan.config.schema import DataConfig
from megatron_yuan.data.blend import Source, cache_folder, names_of
from megatron_yuan.data.datasets import Sources
from megatron_yuan.data.passport_check import some_names
from megatron_yuan.data.record import Identity
from megatron_yuan.data.stamp import Stamps
from megatron_yuan.errors import DataError

BLOCK_BYTES = 2**22  # read in one go, and looked at while they are in the processor's cache
THREADS = 8  # hashing lets go of Python, and more of them only wait for the disk
PATIENCE_SECONDS = 5.0  # what lasts longer is told of

Say = Callable[[str], None]


@dataclass(frozen=True)
class TokenFacts:
    """What reading a whole .bin tells."""

    sha256: str
    lowest: int
    """Of all ids."""
    highest: int


def verify_sources(sources: Sources, config: DataConfig, vocab_size: int, say: Say) -> list[Identity]:
    """Hold every set against its passport and the vocabulary; returns the training sets' identities, in order.

    A file is read only where no stamp tells of it. Raises DataError: bytes that changed, ids outside the vocabulary.
    """
    distinct = sources.distinct
    progress = _Progress(distinct, config, say)
    with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
        jobs = [pool.submit(_verify, each, sources, config, vocab_size, progress) for each in distinct]
        try:
            found = {each.prefix: job.result() for each, job in zip(distinct, jobs, strict=True)}
        except BaseException:
            progress.stopped = True
            pool.shutdown(cancel_futures=True)
            raise
    progress.end()
    _warn_of_strangers(sources, found, say)
    return [
        Identity(name, source.weight, *found[source.prefix][:2])
        for name, source in zip(names_of(sources.train), sources.train, strict=True)
    ]


def _verify(
    source: Source, sources: Sources, config: DataConfig, vocab_size: int, progress: _Progress
) -> tuple[str, str | None, int]:
    """sha256 of .idx and .bin of one set, which are as they should be, and its highest id, 0 where it is not known."""
    stamps, passport = Stamps(cache_folder(source.prefix, config.data_cache_path)), sources.passports[source.prefix]
    index_sha256 = stamps.sha256(source.index)
    if passport is not None and index_sha256 != passport.idx_sha256:
        raise _changed(source, ".idx", index_sha256, passport.idx_sha256)
    facts = token_facts(source, stamps, read=config.verify_data, progress=progress.add)
    if facts is None:
        return index_sha256, None if passport is None else passport.bin_sha256, 0
    if passport is not None and facts.sha256 != passport.bin_sha256:
        raise _changed(source, ".bin", facts.sha256, passport.bin_sha256)
    if facts.highest >= vocab_size or facts.lowest < 0:
        place, bad = _first_outside(source, vocab_size)
        raise DataError(
            f"data_path {source.prefix}: token {place} is id {bad}, but the vocabulary has {vocab_size} "
            "(--vocab-size). Fix: the data was made with another tokenizer, or --vocab-size is too small."
        )
    return index_sha256, facts.sha256, facts.highest


def token_facts(
    source: Source, stamps: Stamps, read: bool = True, progress: Callable[[int], None] = lambda size: None
) -> TokenFacts | None:
    """Of all tokens of a set; without `read`, None where no stamp tells them."""
    known = stamps.recall(source.data)
    if all(name in known for name in ("sha256", "lowest", "highest")):
        return TokenFacts(known["sha256"], known["lowest"], known["highest"])
    if not read:
        return None
    try:
        seen, facts = source.data.stat(), _read(source.data, source.dtype, progress)
    except OSError as error:
        raise DataError(f"{source.data} cannot be read ({error.strerror}). Fix: see to the disk.") from None
    stamps.remember(source.data, seen, asdict(facts))
    return facts


def _read(path: Path, dtype: np.dtype, progress: Callable[[int], None]) -> TokenFacts:
    digest, lowest, highest = hashlib.sha256(), 0, 0
    with open(path, "rb", buffering=0) as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
            ids = np.frombuffer(block, dtype, len(block) // dtype.itemsize)
            if len(ids):
                lowest, highest = min(lowest, int(ids.min())), max(highest, int(ids.max()))
            progress(len(block))
    return TokenFacts(digest.hexdigest(), lowest, highest)


def _first_outside(source: Source, vocab_size: int) -> tuple[int, int]:
    """Place and id of the first token that is not in the vocabulary."""
    ids = np.memmap(source.data, source.dtype, "r")
    for start in range(0, len(ids), BLOCK_BYTES):
        part = ids[start : start + BLOCK_BYTES]
        outside = (part >= vocab_size) | (part < 0)
        if outside.any():
            place = int(np.argmax(outside))
            return start + place, int(part[place])
    raise DataError(f"{source.data} changes while it is read. Fix: wait until it is written.")


def _changed(source: Source, ending: str, found: str, said: str) -> DataError:
    return DataError(
        f"data_path {source.prefix}: {ending} has changed since its passport was written (sha256 {found[:12]}..., the "
        f"passport says {said[:12]}...). Fix: preprocess again."
    )


def _warn_of_strangers(sources: Sources, found: Mapping[str, tuple[str, str | None, int]], say: Say) -> None:
    strangers = [source for source in sources.distinct if sources.passports[source.prefix] is None]
    if not strangers:
        return
    looked_at = all(found[source.prefix][1] for source in strangers)
    but = "; every id is inside the vocabulary" if looked_at else ", nor were their ids looked at (--no-verify-data)"
    highest, ids = max(found[source.prefix][2] for source in strangers), sources.tokenizer_ids
    if ids is not None and highest >= ids:
        but = f"; not the one given as --tokenizer-model, which has {ids} ids: the highest here is {highest}"
    names = names_of(strangers)
    say(
        f"warning: {some_names(names)} {'has' if len(names) == 1 else 'have'} no passport (made by Megatron-LM?): "
        f"nothing tells which tokenizer made {'it' if len(names) == 1 else 'them'}{but}"
    )


class _Progress:
    """Tells how far reading has come, where it takes long. Its `add` is called by several threads."""

    def __init__(self, sources: Sequence[Source], config: DataConfig, say: Say) -> None:
        self._total = sum(source.tokens * source.dtype.itemsize for source in sources) if config.verify_data else 0
        self._say, self._lock, self._done, self._started = say, Lock(), 0, time.monotonic()
        self._next = self._started + PATIENCE_SECONDS
        self.stopped = False
        """Another set was found wrong: what is left need not be read."""

    def add(self, size: int) -> None:
        """`size` more bytes were read."""
        if self.stopped:
            raise DataError("reading was stopped")
        with self._lock:
            self._done += size
            now = time.monotonic()
            if now < self._next:
                return
            if self._done < self._total:
                rate = self._done / (now - self._started)
                left = (self._total - self._done) / rate
                self._say(
                    f"comparing data with their passports, once: {self._done / 1e9:,.1f} of at most "
                    f"{self._total / 1e9:,.1f} GB, {rate / 1e6:,.0f} MB/s, {left:,.0f} s left (--no-verify-data skips "
                    "it)"
                )
            self._next = now + 6 * PATIENCE_SECONDS

    def end(self) -> None:
        """All is read."""
        seconds = time.monotonic() - self._started
        if seconds > PATIENCE_SECONDS:
            self._say(f"read {self._done / 1e9:,.1f} GB of data in {seconds:,.0f} s, and found them as they should be")

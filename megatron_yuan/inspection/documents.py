"""The documents of one set, as text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from megatron_yuan.data.blend import Entry, Source, open_source
from megatron_yuan.data.index_file import read_index
from megatron_yuan.data.passport import read_passport
from megatron_yuan.data.passport_check import check_passport
from megatron_yuan.data.tokenizer import Tokenizer
from megatron_yuan.errors import ConfigError, DataError

NOT_SPELLED = "\ufffd", "\u2047"  # stand for bytes that are no text, and for what the tokenizer does not know


class Documents:
    """A .bin/.idx pair, with the tokenizer that made it where there is one."""

    def __init__(self, prefix: str, tokenizer: Tokenizer | None = None) -> None:
        """Raises DataError for a damaged pair, and for a passport that says another tokenizer."""
        self.source: Source = open_source("prefix", Entry(prefix))
        self.passport = read_passport(prefix)
        self.tokenizer = tokenizer
        if self.passport is not None:
            check_passport(self.source, self.passport, tokenizer, self.passport.vocab_size)
        found = read_index(self.source.index)
        self.lengths, self._offsets, self._itemsize = found.lengths, found.offsets, found.dtype.itemsize
        self._ids = np.memmap(self.source.data, found.dtype, "r")

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, number: int) -> np.ndarray:
        """Ids of document `number`."""
        if not 0 <= number < len(self):
            raise ConfigError(
                f"document is {number}, but {self.source.prefix} has {len(self):,}: give a number from 0 to "
                f"{len(self) - 1}."
            )
        first = int(self._offsets[number]) // self._itemsize
        return self._ids[first : first + int(self.lengths[number])]

    def text(self, number: int) -> str:
        """Document `number`, special tokens by their names."""
        assert self.tokenizer is not None
        try:
            return self.tokenizer.spell(self[number].tolist())
        except DataError as error:
            raise DataError(f"document {number} of {self.source.prefix}: {error}") from None

    def find(self, wanted: str) -> Iterator[tuple[int, int]]:
        """Each document whose text contains `wanted`, and the place in its text at which that first stands."""
        assert self.tokenizer is not None
        if not wanted:
            raise ConfigError("text to find is empty: give some.")
        if any("\ud800" <= character <= "\udfff" for character in wanted):
            raise ConfigError(f"text to find is {wanted!a}, which is not UTF-8: no document holds it.")
        # Spelling is slow, so a document is spelled only where the bytes of its pieces hold what is wanted.
        pieces = self.tokenizer.piece_bytes()
        needles = [t.encode() if isinstance(t, str) else pieces[t] for t in self.tokenizer.split(wanted)]
        if any(mark in wanted for mark in NOT_SPELLED):
            needles = []
        for number in range(len(self)):
            try:
                raw = b"".join([pieces[token] for token in self[number].tolist()])
            except IndexError:
                raw = b""
                self.text(number)  # says which id is outside
            if all(needle in raw for needle in needles):
                place = self.text(number).find(wanted)
                if place >= 0:
                    yield number, place


def open_tokenizer(path: str | None, beside: str) -> Tokenizer:
    """The tokenizer that is named; ConfigError where none is."""
    if path is None:
        raise ConfigError(f"{beside} is ids, which only the tokenizer that made them spells: --tokenizer-model FILE.")
    return Tokenizer(Path(path))


def shown(text: str, place: int, length: int, around: int = 40) -> str:
    """`text` around its characters `place` ... + `length`, on one line."""
    first, end = max(0, place - around), place + length + around
    return ("..." if first else "") + one_line(text[first:end]) + ("..." if end < len(text) else "")


def one_line(text: str) -> str:
    r"""`text` with its line breaks, and all else that moves a cursor, as \n and the like."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)

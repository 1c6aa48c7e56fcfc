"""Fill-in-the-middle: documents rearranged so that the model learns to write what stands between two texts.

A document is cut at two random places into prefix, middle and suffix, and becomes

    PSM:  <FIM_PREFIX> prefix <FIM_SUFFIX> suffix <FIM_MIDDLE> middle
    SPM:  <FIM_PREFIX> <FIM_SUFFIX> suffix <FIM_MIDDLE> prefix middle

as in the published code (Bavarian et al., arXiv 2207.14255). Cut between characters, as published, each of the three is
encoded by itself, so that a model learns to go on from half a word; cut between tokens, the ids stay what they were.
What differs from that code: documents that a sample's edge cuts stay as they are, and so do those whose text would not
come back whole; special tokens are never cut in two, text keeps its leading spaces, and padding has no loss.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Sequence
from typing import Literal, NamedTuple

import numpy as np

from megatron_yuan.data.fim_figures import FimFigures
from megatron_yuan.data.sample import Sample, SampleSource
from megatron_yuan.data.tokenizer import SPECIAL_TOKENS, Tokenizer
from megatron_yuan.errors import DataError

MARKS = "<FIM_PREFIX>", "<FIM_SUFFIX>", "<FIM_MIDDLE>"
UNDECODABLE = "\ufffd"  # stands for bytes that are no UTF-8

_ATOMS = re.compile("|".join(map(re.escape, SPECIAL_TOKENS)) + "|.", re.DOTALL)

Ids = Sequence[int]


class Cut(NamedTuple):
    """A document that was rearranged: where it begins in its row, and the tokens of its parts."""

    start: int
    spm: bool
    prefix: int
    middle: int
    suffix: int

    def spans(self) -> list[tuple[str, int]]:
        """Its parts in the order in which they stand, each with its length: marks, prefix, middle, suffix."""
        prefix, middle, suffix = ("prefix", self.prefix), ("middle", self.middle), ("suffix", self.suffix)
        if self.spm:
            return [("mark", 2), suffix, ("mark", 1), prefix, middle]
        return [("mark", 1), prefix, ("mark", 1), suffix, ("mark", 1), middle]


class FimSamples:
    """The samples of `source`, `rate` of their documents rearranged, `spm_rate` of those in SPM order.

    What becomes of sample i depends on `seed` and i alone. `eod_id` ends a document; unset, it is the tokenizer's.
    `sets`: numbers of the sets it is for; None: all. Raises DataError where the tokenizer lacks the tokens for it.
    """

    def __init__(
        self,
        source: SampleSource,
        tokenizer: Tokenizer,
        rate: float,
        spm_rate: float,
        seed: int,
        eod_id: int | None = None,
        cut: Literal["character", "token"] = "character",
        sets: Collection[int] | None = None,
    ) -> None:
        missing = [token for token in MARKS if token not in tokenizer.special_ids]
        if missing:
            raise DataError(
                f"fim_rate {rate} needs {', '.join(missing)}, which tokenizer_model {tokenizer.path} lacks. "
                "Fix: a tokenizer that has them, or --fim-rate 0."
            )
        self.source, self.tokenizer, self.seed = source, tokenizer, seed
        self.rate, self.spm_rate = rate, spm_rate
        self._cut = cut_tokens if cut == "token" else self._cut_text
        self._sets = None if sets is None else frozenset(sets)
        self._marks = [tokenizer.special_ids[token] for token in MARKS]
        self.eod_id = tokenizer.eod_id if eod_id is None else eod_id

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Sample:
        """Sample `index`: cut off or padded to the length it had, and a mask [S + 1] that is 0 on padding, if any."""
        return self.rearranged(index)[0]

    def rearranged(self, index: int) -> tuple[Sample, FimFigures]:
        """Sample `index`, and what was done to it."""
        sample, figures, _ = self._rearrange(index)
        return sample, figures

    def cuts(self, index: int) -> list[Cut]:
        """The documents of sample `index` that are rearranged; its end may be cut off within one."""
        return self._rearrange(index)[2]

    def _rearrange(self, index: int) -> tuple[Sample, FimFigures, list[Cut]]:
        sample = self.source[index]
        if self._sets is not None and sample.set_id not in self._sets:
            return sample, FimFigures(other_sets=1), []
        assert sample.loss_mask is None and sample.begins is None, "neither survives rearranging"
        segments = split_documents(sample.tokens, self.eod_id)
        pieces: list[np.ndarray | Ids] = []
        cuts: list[Cut] = []
        place = impossible = 0
        random = _generator(self.seed, index)
        for segment, whole in segments:
            pieces.append(segment)
            if whole and len(segment) > 1 and random.random() < self.rate:
                spm = random.random() < self.spm_rate
                parts = self._cut(segment[:-1].tolist(), random)
                if parts is None:
                    impossible += 1
                else:
                    pieces[-1] = [*arrange(*parts, spm, self._marks), self.eod_id]
                    cuts.append(Cut(place, spm, *map(len, parts)))
            place += len(pieces[-1])
        made = np.concatenate(pieces).astype(sample.tokens.dtype)
        tokens, mask = fit(made, len(sample.tokens), self.tokenizer.pad_id)
        figures = FimFigures(
            samples=1,
            segments=sum(len(segment) > 0 for segment, _ in segments),
            whole=sum(whole and len(segment) > 1 for segment, whole in segments),
            rearranged=len(cuts),
            impossible=impossible,
            tokens=len(tokens),
            truncated=int(len(made) > len(tokens)),
            tokens_lost=max(0, len(made) - len(tokens)),
            padded=int(len(made) < len(tokens)),
            padding=max(0, len(tokens) - len(made)),
        )
        return sample._replace(tokens=tokens, loss_mask=mask), figures, cuts

    def _cut_text(self, ids: list[int], random: np.random.Generator) -> tuple[Ids, Ids, Ids] | None:
        """None where the ids would be lost: they are not all the tokenizer's, spell no text, or it changes its text."""
        if max(ids) >= self.tokenizer.vocab_size:  # the model's vocabulary, which data are held against, may be larger
            return None
        text = self.tokenizer.spell(ids)
        if UNDECODABLE in text:
            return None
        parts = cut_text(text, self.tokenizer, random)
        return parts if "".join(map(self.tokenizer.spell, parts)) == text else None


def split_documents(tokens: np.ndarray, eod_id: int) -> list[tuple[np.ndarray, bool]]:
    """`tokens` in pieces that end after each <eod>, and whether a piece is surely a whole document.

    The first is not: its document may have begun before the sample. Nor is what comes after the last <eod>.
    """
    ends = np.flatnonzero(tokens == eod_id) + 1
    pieces = np.split(tokens, ends)
    return [(piece, 0 < i < len(ends)) for i, piece in enumerate(pieces)]


def cut_text(text: str, tokenizer: Tokenizer, random: np.random.Generator) -> tuple[Ids, Ids, Ids]:
    """Ids of prefix, middle and suffix of `text`: two random cuts, special tokens count as one character."""
    atoms = _ATOMS.findall(text)
    first, second = sorted(random.integers(0, len(atoms) + 1, 2))
    prefix, middle, suffix = (
        tokenizer.encode("".join(part)) for part in (atoms[:first], atoms[first:second], atoms[second:])
    )
    return prefix, middle, suffix


def cut_tokens(ids: list[int], random: np.random.Generator) -> tuple[Ids, Ids, Ids]:
    """Prefix, middle and suffix of `ids`: two random cuts."""
    first, second = sorted(random.integers(0, len(ids) + 1, 2))
    return ids[:first], ids[first:second], ids[second:]


def arrange(prefix: Ids, middle: Ids, suffix: Ids, spm: bool, marks: Ids) -> list[int]:
    """The three in SPM or PSM order; `marks` are the ids of MARKS."""
    of_prefix, of_suffix, of_middle = marks
    if spm:
        return [of_prefix, of_suffix, *suffix, of_middle, *prefix, *middle]
    return [of_prefix, *prefix, of_suffix, *suffix, of_middle, *middle]


def fit(tokens: np.ndarray, length: int, pad_id: int) -> tuple[np.ndarray, np.ndarray | None]:
    """`tokens` cut off or padded at the right to `length`, and a mask that is 0 on padding (None: no padding)."""
    if len(tokens) >= length:
        return tokens[:length], None
    padded = np.full(length, pad_id, tokens.dtype)
    padded[: len(tokens)] = tokens
    return padded, (np.arange(length) < len(tokens)).astype(np.float32)


def _generator(*parts: object) -> np.random.Generator:
    digest = hashlib.blake2b("/".join(map(str, ("fim", *parts))).encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "big"))

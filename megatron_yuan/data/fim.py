"""Fill-in-the-middle: documents rearranged so that the model learns to write what stands between two texts.

A document is cut at two random characters into prefix, middle and suffix, each encoded by itself, and becomes

    PSM:  <FIM_PREFIX> prefix <FIM_SUFFIX> suffix <FIM_MIDDLE> middle
    SPM:  <FIM_PREFIX> <FIM_SUFFIX> suffix <FIM_MIDDLE> prefix middle

as in the published code (Bavarian et al., arXiv 2207.14255). What differs from that code: documents that a sample's
edge cuts stay as they are, special tokens are never cut in two, text keeps its leading spaces, and padding has no loss.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

import numpy as np

from megatron_yuan.data.sample import Sample, SampleSource
from megatron_yuan.data.tokenizer import SPECIAL_TOKENS, Tokenizer
from megatron_yuan.errors import DataError

MARKS = "<FIM_PREFIX>", "<FIM_SUFFIX>", "<FIM_MIDDLE>"
UNDECODABLE = "\ufffd"  # stands for bytes that are no UTF-8

_ATOMS = re.compile("|".join(map(re.escape, SPECIAL_TOKENS)) + "|.", re.DOTALL)


class FimSamples:
    """The samples of `source`, `rate` of their documents rearranged, `spm_rate` of those in SPM order.

    What becomes of sample i depends on `seed` and i alone. `eod_id` ends a document; unset, it is the tokenizer's.
    Raises DataError where the tokenizer lacks the tokens for it.
    """

    def __init__(
        self,
        source: SampleSource,
        tokenizer: Tokenizer,
        rate: float,
        spm_rate: float,
        seed: int,
        eod_id: int | None = None,
    ) -> None:
        missing = [token for token in MARKS if token not in tokenizer.special_ids]
        if missing:
            raise DataError(
                f"fim_rate {rate} needs {', '.join(missing)}, which tokenizer_model {tokenizer.path} lacks. "
                "Fix: a tokenizer that has them, or --fim-rate 0."
            )
        self.source, self.tokenizer, self.seed = source, tokenizer, seed
        self.rate, self.spm_rate = rate, spm_rate
        self._marks = [tokenizer.special_ids[token] for token in MARKS]
        self.eod_id = tokenizer.eod_id if eod_id is None else eod_id

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Sample:
        """Sample `index`: cut off or padded to the length it had, and a mask [S + 1] that is 0 on padding, if any."""
        tokens, mask, set_id = self.source[index]
        assert mask is None, "a loss mask does not survive rearranging"
        pieces: list[np.ndarray | list[int]] = []
        random = _generator(self.seed, index)
        for segment, whole in split_documents(tokens, self.eod_id):
            chosen = whole and len(segment) > 1 and random.random() < self.rate
            pieces.append(self._rearrange(segment, random) if chosen else segment)
        return Sample(*fit(np.concatenate(pieces).astype(tokens.dtype), len(tokens), self.tokenizer.pad_id), set_id)

    def _rearrange(self, document: np.ndarray, random: np.random.Generator) -> np.ndarray | list[int]:
        """`document` and its <eod>, rearranged."""
        spm = random.random() < self.spm_rate
        text = self.tokenizer.spell(document[:-1].tolist())
        if UNDECODABLE in text:
            return document  # its ids are not those of a text, so they would be lost
        return [*arrange(*cut(text, self.tokenizer, random), spm, self._marks), self.eod_id]


def split_documents(tokens: np.ndarray, eod_id: int) -> list[tuple[np.ndarray, bool]]:
    """`tokens` in pieces that end after each <eod>, and whether a piece is surely a whole document.

    The first is not: its document may have begun before the sample. Nor is what comes after the last <eod>.
    """
    ends = np.flatnonzero(tokens == eod_id) + 1
    pieces = np.split(tokens, ends)
    return [(piece, 0 < i < len(ends)) for i, piece in enumerate(pieces)]


def cut(text: str, tokenizer: Tokenizer, random: np.random.Generator) -> tuple[list[int], list[int], list[int]]:
    """Ids of prefix, middle and suffix of `text`: two random cuts, special tokens count as one character."""
    atoms = _ATOMS.findall(text)
    first, second = sorted(random.integers(0, len(atoms) + 1, 2))
    prefix, middle, suffix = (
        tokenizer.encode("".join(part)) for part in (atoms[:first], atoms[first:second], atoms[second:])
    )
    return prefix, middle, suffix


def arrange(prefix: list[int], middle: list[int], suffix: list[int], spm: bool, marks: Sequence[int]) -> list[int]:
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

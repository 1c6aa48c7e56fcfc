"""The published tokenizer: SentencePiece BPE, with the special tokens split out first, and no <s> anywhere.

The released model was trained on ids made by transformers' LlamaTokenizer in its legacy form, so this follows its
rules to the letter:

- a special token in the text is that token, whatever stands beside it; each stretch of text between special tokens
  is encoded on its own and so gets SentencePiece's leading space;
- decoding puts a space before a special token that follows text (unless text starts there), and between a token added
  beyond the model's pieces and its neighbours.

A model trained by tools/train_tokenizer.py has the same special tokens as pieces and follows the same rules.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import sentencepiece

from megatron_yuan.errors import DataError

EOD = "<eod>"
SPECIAL_TOKENS = (
    "<sep>", "<pad>", "<mask>", "<predict>", "<FIM_SUFFIX>", "<FIM_PREFIX>", "<FIM_MIDDLE>", "<commit_before>",
    "<commit_msg>", "<commit_after>", "<jupyter_start>", "<jupyter_text>", "<jupyter_code>", "<jupyter_output>",
    "<empty_output>",
)  # fmt: skip
"""In the published order: those that are no pieces of the model get the ids after its last, in this order."""
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # SentencePiece's sign for a space


class Tokenizer:
    """Text to ids and back.

    Raises DataError where `path` is no SentencePiece model.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            proto = self.path.read_bytes()
        except OSError as error:
            raise DataError(
                f"tokenizer_model {path} cannot be read ({error.strerror}). Fix: name a SentencePiece .model file."
            ) from None
        self.model = sentencepiece.SentencePieceProcessor()
        try:
            self.model.LoadFromSerializedProto(proto)
        except RuntimeError:
            raise DataError(f"tokenizer_model {path} is no SentencePiece model. Fix: name the right file.") from None
        self.sha256 = hashlib.sha256(proto).hexdigest()
        self._unknown = self.model.IdToPiece(self.model.unk_id())
        self._begin = self.model.IdToPiece(self.model.bos_id()) if self.model.bos_id() >= 0 else None
        self.special_ids = self._number_special_tokens()
        longest_first = sorted(self.special_ids, key=len, reverse=True)
        self._special = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")

    def _number_special_tokens(self) -> dict[str, int]:
        ids = {}
        following = len(self.model)
        for token in (self._unknown, self._begin, EOD, *SPECIAL_TOKENS):
            if token is None:
                continue
            piece = self.model.PieceToId(token)
            if piece == self.model.unk_id() and token != self._unknown:  # not a piece
                piece, following = following, following + 1
            ids[token] = piece
        return ids

    @property
    def vocab_size(self) -> int:
        """Number of ids in use, with the tokens added beyond the model's pieces."""
        return max(len(self.model), 1 + max(self.special_ids.values()))

    @property
    def eod_id(self) -> int:
        """Id of <eod>, which ends a document."""
        return self.special_ids[EOD]

    @property
    def pad_id(self) -> int:
        """Id of <pad>."""
        return self.special_ids["<pad>"]

    @cached_property
    def _special_names(self) -> dict[int, str]:
        return {number: token for token, number in self.special_ids.items()}

    def encode(self, text: str) -> list[int]:
        """Ids of `text`; nothing is added in front or behind."""
        ids: list[int] = []
        for part in self._special.split(text):
            if part in self.special_ids:
                ids.append(self.special_ids[part])
            elif part:
                ids += self.model.EncodeAsIds(part)
        return ids

    def encode_batch(self, texts: Sequence[str], threads: int = 1) -> list[list[int]]:
        """Ids of each text, all stretches of them encoded together on `threads` threads; the same ids as `encode`."""
        parts = [[part for part in self._special.split(text) if part] for text in texts]
        stretches = [part for each in parts for part in each if part not in self.special_ids]
        encoded = iter(self.model.EncodeAsIds(stretches, num_threads=threads))
        batch: list[list[int]] = []
        for each in parts:
            ids: list[int] = []
            for part in each:
                ids += [self.special_ids[part]] if part in self.special_ids else next(encoded)
            batch.append(ids)
        return batch

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, special tokens spelled out. Raises DataError for an id outside the vocabulary."""
        parts: list[str] = []  # runs of pieces and, between them, tokens beyond the model's pieces
        run: list[int] = []
        for number in ids:
            if not 0 <= number < self.vocab_size:
                raise DataError(f"id {number} is outside the tokenizer's vocabulary of {self.vocab_size}.")
            if number < len(self.model):
                run.append(number)
                continue
            if run and (text := self._decode_run(run)):
                parts.append(text)
            run = []
            parts.append(self._special_names[number])
        if run:
            parts.append(self._decode_run(run))
        return " ".join(parts)  # legacy: a last run without text still gets its space

    def _decode_run(self, ids: Sequence[int]) -> str:
        pieces = [self.model.IdToPiece(number) for number in ids]
        if pieces[0].startswith(SPACE):
            pieces[0] = pieces[0][1:]
        text, stretch, after_special = "", [], False
        for i, (number, piece) in enumerate(zip(ids, pieces, strict=True)):
            if number in self._special_names and piece == self._special_names[number]:
                if not after_special and i:
                    text += " "
                text += self.model.DecodePieces(stretch) + piece
                stretch, after_special = [], True
                continue
            if after_special and i == 1 and not piece.startswith(SPACE):
                text += " "
            stretch.append(piece)
            after_special = False
        return text + self.model.DecodePieces(stretch)

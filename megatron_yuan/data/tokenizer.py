"""Text to token ids and back, exactly as the published Yuan tokenizer does it, with SentencePiece alone.

What is unusual:

- The special tokens are cut out of the text first; each piece of text between them is encoded by itself, so each gets
  SentencePiece's leading space of its own. No token is put before or after the text.
- Special tokens that the SentencePiece model lacks get the ids after its last one, in their published order.
- Decoding writes spaces around special tokens by rules of their own (`decode`), those of transformers 4.41.2's
  LlamaTokenizer in its legacy mode, with which the model was published.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

import sentencepiece

from megatron_yuan.data.sentencepiece_model import read_settings
from megatron_yuan.errors import DataError

EOD = "<eod>"
PAD = "<pad>"
ADDED_TOKENS = (
    "<sep>",
    PAD,
    "<mask>",
    "<predict>",
    "<FIM_SUFFIX>",
    "<FIM_PREFIX>",
    "<FIM_MIDDLE>",
    "<commit_before>",
    "<commit_msg>",
    "<commit_after>",
    "<jupyter_start>",
    "<jupyter_text>",
    "<jupyter_code>",
    "<jupyter_output>",
    "<empty_output>",
)
"""In the order in which the published code adds them, which gives those missing from the model their ids."""

SPECIAL_TOKENS = (EOD, *ADDED_TOKENS)
SPACE = "\u2581"  # how SentencePiece writes a space inside a piece


class Tokenizer:
    """A SentencePiece model with the published special tokens.

    `path`: file in SentencePiece's format. Raises DataError if it is missing or something else.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.model, self.sha256 = _open_model(self.path)
        """What encodes plain text."""
        own = self.model.get_piece_size()
        pieces: list[str] = self.model.id_to_piece(list(range(own)))
        unknown = pieces[self.model.unk_id()]
        if EOD not in pieces:
            raise DataError(
                f"tokenizer_model {self.path} has no piece {EOD}, which ends every document. Fix: the published model, "
                "or one of tools/train_tokenizer.py."
            )
        # In the text, the words of these three mean the tokens too: <s>, <eod>, <unk>.
        basic = ["<s>", EOD, unknown]
        special_ids: dict[str, int] = {}
        for token in (*basic, *ADDED_TOKENS):
            token_id = self.model.piece_to_id(token)
            if token_id == self.model.unk_id() and token != unknown:
                token_id = len(pieces)
                pieces.append(token)
            special_ids[token] = token_id
        self._pieces = pieces
        self.in_text = special_ids
        """Words that mean a token wherever they stand in a text, and their ids."""
        self._appended = {token for token in ADDED_TOKENS if special_ids[token] >= own}
        self._cut = re.compile("(" + "|".join(map(re.escape, special_ids)) + ")")
        self.special_ids = {token: special_ids[token] for token in SPECIAL_TOKENS}
        """The published special tokens and their ids."""

    @property
    def vocab_size(self) -> int:
        """Ids in use, those of the special tokens included; every id is below it."""
        return len(self._pieces)

    @property
    def eod_id(self) -> int:
        """Id of <eod>, which ends a document."""
        return self.special_ids[EOD]

    @property
    def pad_id(self) -> int:
        """Id of <pad>."""
        return self.special_ids[PAD]

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, nothing put before or after. DataError if `text` is not Unicode (half a surrogate pair)."""
        try:
            text.encode("utf-8")  # takes next to no time, and what SentencePiece says instead depends on its release
        except UnicodeEncodeError as error:
            raise DataError(
                f"character {text[error.start : error.end]!a} of the text is half a surrogate pair, not a character. "
                "Fix: write the text in UTF-8, characters beyond U+FFFF as one."
            ) from None
        ids: list[int] = []
        for part in self.split(text):
            ids.extend([part] if isinstance(part, int) else self.model.encode(part))
        return ids

    def split(self, text: str) -> list[str | int]:
        """Plain text, none empty, and the ids of the special tokens between."""
        return [self.in_text.get(part, part) for part in self._cut.split(text) if part]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`. DataError for an id outside the vocabulary.

        Special tokens of the SentencePiece model stand as they are, and for each the text before it gets a space in
        front, unless the token comes first or follows another. Appended ones (`<mask>`, `<FIM_PREFIX>` ...) are set off
        by a space on both sides.
        """
        parts: list[str] = []
        run: list[str] = []
        for piece in self._to_pieces(ids):
            if piece not in self._appended:
                run.append(piece)
                continue
            if run:
                text = self._decode_run(run)
                if text:
                    parts.append(text)
                run = []
            parts.append(piece)
        if run:
            parts.append(self._decode_run(run))
        return " ".join(parts)

    def spell(self, ids: Iterable[int]) -> str:
        """Text that `encode` makes `ids` of, space for space, where `decode` has the published spacing."""
        text, run = "", []
        for piece in self._to_pieces(ids):
            if piece in self.in_text:
                text += self.model.decode_pieces(run) + piece
                run = []
            else:
                run.append(piece)
        return text + self.model.decode_pieces(run)

    def piece_bytes(self) -> list[bytes]:
        """What each id stands for in UTF-8, spaces as such; `spell` leaves some of these spaces out."""
        own = self.model.get_piece_size()
        return [
            bytes([int(piece[1:-1], 16)])  # <0xE4>
            if number < own and self.model.is_byte(number)
            else piece.replace(SPACE, " ").encode()
            for number, piece in enumerate(self._pieces)
        ]

    def _to_pieces(self, ids: Iterable[int]) -> list[str]:
        pieces = []
        for token_id in ids:
            if not 0 <= token_id < len(self._pieces):
                raise DataError(
                    f"token id {token_id} is outside the vocabulary of {self.path} ({len(self._pieces)} ids). "
                    "Fix: use the tokenizer that made the ids."
                )
            pieces.append(self._pieces[token_id])
        return pieces

    def _decode_run(self, pieces: list[str]) -> str:
        """Text of pieces none of which is an appended token; `pieces` is not empty."""
        pieces = [pieces[0].removeprefix(SPACE), *pieces[1:]]
        text, run, after_special = "", [], False
        for position, piece in enumerate(pieces):
            if piece in self.in_text:
                if position and not after_special:
                    text += " "
                text += self.model.decode_pieces(run) + piece
                run, after_special = [], True
            else:
                if after_special and position == 1 and not piece.startswith(SPACE):
                    text += " "
                run.append(piece)
                after_special = False
        return text + self.model.decode_pieces(run)


def _open_model(path: Path) -> tuple[sentencepiece.SentencePieceProcessor, str]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"tokenizer_model {path} cannot be read ({error.strerror}). "
            "Fix: name a SentencePiece model; tools/train_tokenizer.py makes one."
        ) from None
    model = sentencepiece.SentencePieceProcessor()
    try:
        if not data:
            raise RuntimeError("it is empty")
        model.LoadFromSerializedProto(data)
        if model.get_piece_size() == 0:
            raise RuntimeError("it has no pieces")
        model.id_to_piece(list(range(model.get_piece_size())))  # not all text, perhaps
        read_settings(data)
    except (RuntimeError, ValueError):
        raise DataError(
            f"tokenizer_model {path} is not a SentencePiece model. Fix: name a file in that format."
        ) from None
    return model, hashlib.sha256(data).hexdigest()

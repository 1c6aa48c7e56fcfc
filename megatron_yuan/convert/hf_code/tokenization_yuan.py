"""Yuan's tokenizer for transformers: SentencePiece, the published special tokens cut out of the text first, no BOS.

Ids and decoded text are those of the published tokenizer as it is meant to be built: LlamaTokenizer in its legacy form,
nothing added at the ends, `<eod>` as end, and the special tokens that the model lacks appended in their order.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import sentencepiece
from transformers import PreTrainedTokenizer

ADDED_TOKENS = (
    "<sep>",
    "<pad>",
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
SPACE = "\u2581"  # how SentencePiece writes a space inside a piece


class YuanTokenizer(PreTrainedTokenizer):
    """Text to ids and back; `vocab_file`: the SentencePiece model."""

    vocab_files_names = {"vocab_file": "tokenizer.model"}  # noqa: RUF012
    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012

    def __init__(
        self,
        vocab_file: str,
        eos_token: Any = "<eod>",
        pad_token: Any = "<pad>",
        sep_token: Any = "<sep>",
        unk_token: Any = None,
        padding_side: str = "left",
        **kwargs: Any,
    ) -> None:
        self.vocab_file = vocab_file
        self._model = sentencepiece.SentencePieceProcessor(model_file=str(vocab_file))
        own = self._model.get_piece_size()
        self._pieces: list[str] = self._model.id_to_piece(list(range(own)))
        unknown = self._pieces[self._model.unk_id()]
        self._ids: dict[str, int] = {}
        for token in ("<s>", "<eod>", unknown, *ADDED_TOKENS):
            self._ids[token] = self._model.piece_to_id(token)
            if self._ids[token] == self._model.unk_id() and token != unknown:
                self._ids[token] = len(self._pieces)
                self._pieces.append(token)
        self._in_text = frozenset(self._ids)
        self._appended = {token for token in ADDED_TOKENS if self._ids[token] >= own}
        self._ids = {piece: i for i, piece in enumerate(self._pieces)}
        super().__init__(
            eos_token=eos_token,
            pad_token=pad_token,
            sep_token=sep_token,
            unk_token=unknown if unk_token is None else unk_token,
            padding_side=padding_side,
            **kwargs,
        )

    @property
    def vocab_size(self) -> int:
        """Ids in use, without those that `add_tokens` makes."""
        return len(self._pieces)

    def get_vocab(self) -> dict[str, int]:
        """Every token and its id."""
        return {**self._ids, **self.added_tokens_encoder}

    def tokenize(self, text: str, **kwargs: Any) -> list[str]:
        """Pieces of `text`; special tokens and added ones are never cut."""
        whole = sorted(self._in_text | set(self.added_tokens_encoder), key=len, reverse=True)
        found: list[str] = []
        for part in re.split("(" + "|".join(map(re.escape, whole)) + ")", text):
            if part in self._in_text or part in self.added_tokens_encoder:
                found.append(part)
            elif part:
                # By way of ids, for what the model does not know is a piece of its own there.
                found.extend(self._model.id_to_piece(self._model.encode(part)))
        return found

    def _convert_token_to_id(self, token: str) -> int:
        return self._ids.get(token, self._model.unk_id())

    def _convert_id_to_token(self, index: int) -> str:
        # The model's vocabulary is padded, and what it says may be one of these ids: there is nothing to write for it.
        return self._pieces[index] if 0 <= index < len(self._pieces) else ""

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Text of pieces, with the published spaces about special tokens."""
        added = {token for token in self.added_tokens_encoder if token not in self._in_text and token not in self._ids}
        appended = self._appended | added
        parts: list[str] = []
        run: list[str] = []
        for piece in tokens:
            if piece not in appended:
                run.append(piece)
                continue
            text = self._decode_run(run)
            parts += [text, piece] if text else [piece]
            run = []
        if run:
            parts.append(self._decode_run(run))
        return " ".join(parts)

    def _decode_run(self, pieces: list[str]) -> str:
        if not pieces:
            return ""
        pieces = [pieces[0].removeprefix(SPACE), *pieces[1:]]
        text, run, after_special = "", [], False
        for position, piece in enumerate(pieces):
            if piece in self._in_text:
                text += " " if position and not after_special else ""
                text += self._model.decode_pieces(run) + piece
                run, after_special = [], True
            else:
                text += " " if after_special and position == 1 and not piece.startswith(SPACE) else ""
                run.append(piece)
                after_special = False
        return text + self._model.decode_pieces(run)

    def _decode(self, token_ids: Any, skip_special_tokens: bool = False, **kwargs: Any) -> str:
        ids = [token_ids] if isinstance(token_ids, int) else list(token_ids)
        return self.convert_tokens_to_string(self.convert_ids_to_tokens(ids, skip_special_tokens=skip_special_tokens))

    def build_inputs_with_special_tokens(self, token_ids_0: list[int], token_ids_1: list[int] | None = None) -> Any:
        """Nothing is added."""
        return token_ids_0 + (token_ids_1 or [])

    def get_special_tokens_mask(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None, already_has_special_tokens: bool = False
    ) -> list[int]:
        """1 at special tokens, none of which encoding adds."""
        ids = token_ids_0 + (token_ids_1 or [])
        special = set(self.all_special_ids) if already_has_special_tokens else set()
        return [int(i in special) for i in ids]

    def create_token_type_ids_from_sequences(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """Zeros: the model knows no types."""
        return [0] * (len(token_ids_0) + len(token_ids_1 or []))

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str]:
        """Copy the SentencePiece model; returns where."""
        prefix = f"{filename_prefix}-" if filename_prefix else ""
        target = Path(save_directory) / f"{prefix}tokenizer.model"
        if Path(self.vocab_file).resolve() != target.resolve():
            shutil.copyfile(self.vocab_file, target)
        return (str(target),)


YuanTokenizer.register_for_auto_class("AutoTokenizer")

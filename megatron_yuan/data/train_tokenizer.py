"""Train a tokenizer of the published kind: SentencePiece BPE, byte fallback, split digits, text taken as it is.

The special tokens are pieces of the model, so `vocab_size` counts them too.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import sentencepiece

from megatron_yuan.data.inputs import Input, find_inputs
from megatron_yuan.data.parse import read_documents
from megatron_yuan.data.tokenizer import SPECIAL_TOKENS
from megatron_yuan.errors import DataError

LONGEST_LINE = 1000  # characters; longer lines are cut, since the trainer leaves out what is beyond its limit
RESERVED = 3 + len(SPECIAL_TOKENS) + 256  # <unk> <s> </s>, special tokens, bytes
COVERAGE = 0.9995  # share of the text's characters that get a piece of their own; the rest is written in bytes


def train_tokenizer(
    inputs: Sequence[str | Path], output: str | Path, vocab_size: int, keys: Sequence[str] = ("text",)
) -> Path:
    """Write a SentencePiece model of exactly `vocab_size` pieces to `output`; the same text gives the same bytes.

    Raises DataError for input that cannot be read, and for a vocabulary too large or too small for the text.
    """
    output = Path(output)
    paths = find_inputs(inputs, keys)
    if vocab_size <= RESERVED:
        raise DataError(
            f"vocab_size {vocab_size} leaves nothing for text: {RESERVED} pieces are bytes and special tokens. "
            "Fix: --vocab-size of some thousands."
        )
    model = io.BytesIO()
    lines = _Lines(paths, keys)
    try:
        sentencepiece.SentencePieceTrainer.Train(
            sentence_iterator=iter(lines),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            byte_fallback=True,
            split_digits=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,  # indentation of code
            character_coverage=COVERAGE,
            user_defined_symbols=list(SPECIAL_TOKENS),
            max_sentence_length=4 * LONGEST_LINE + 1,  # in bytes
            num_threads=1,  # is written into the model, which must not depend on the machine
            minloglevel=2,
        )
    except RuntimeError as error:
        raise lines.error or _explain(error, vocab_size, paths) from None
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        temporary = output.with_name(f".{output.name}.{os.getpid()}")
        try:
            temporary.write_bytes(model.getvalue())
            os.replace(temporary, output)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"output {output} cannot be written ({error.strerror}). Fix: another --output.") from None
    return output


class _Lines:
    """Texts line by line and without special tokens, as `Tokenizer.encode` and the published model have them.

    A line break is then never part of a piece: it is the byte <0x0A>. SentencePiece turns an error of the iterator
    into one of its own, so `error` keeps ours.
    """

    def __init__(self, paths: Sequence[Input], keys: Sequence[str]) -> None:
        self._paths, self._keys = paths, keys
        self.error: DataError | None = None

    def __iter__(self) -> Iterator[str]:
        cut = re.compile("|".join(map(re.escape, SPECIAL_TOKENS)) + r"|[\r\n\0]+")
        empty = True
        try:
            for texts in read_documents(self._paths, self._keys):
                for line in (line for text in texts for line in cut.split(text) if line.strip()):
                    empty = False
                    yield from (line[start : start + LONGEST_LINE] for start in range(0, len(line), LONGEST_LINE))
            if empty:
                raise DataError(f"input {', '.join(map(str, self._paths))} holds no text. Fix: name files with some.")
        except DataError as error:
            self.error = error
            raise


def _explain(error: RuntimeError, vocab_size: int, paths: Sequence[Input]) -> DataError:
    message = str(error)
    where = ", ".join(map(str, paths))
    if found := re.search(r"required_chars\. \d+ vs (\d+)", message):
        return DataError(
            f"vocab_size {vocab_size} is too small for the characters of {where}. Fix: --vocab-size {found[1]} or more."
        )
    if found := re.search(r"value <= (\d+)", message):
        return DataError(
            f"vocab_size {vocab_size} is more than {where} can fill. Fix: --vocab-size {found[1]} or less."
        )
    return DataError(f"no tokenizer of vocab_size {vocab_size} can be trained on {where}: SentencePiece says {message}")

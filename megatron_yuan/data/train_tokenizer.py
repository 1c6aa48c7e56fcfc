"""Train a tokenizer of the published kind: SentencePiece BPE, byte fallback, split digits, text taken as it is."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import sentencepiece

from megatron_yuan.data.readers import check_inputs, read_documents
from megatron_yuan.data.tokenizer import EOD, SPECIAL_TOKENS
from megatron_yuan.errors import DataError

LONGEST_LINE = 1000  # characters; longer lines are cut, since the trainer leaves out what is beyond its limit
BYTES_AND_MARKS = 256 + 3 + 1 + len(SPECIAL_TOKENS)  # byte pieces, <unk> <s> </s>, <eod>, the rest


def train_tokenizer(inputs: Sequence[str], output: Path, vocab_size: int, keys: Sequence[str] = ("text",)) -> Path:
    """Write a SentencePiece model of `vocab_size` pieces to `output`; the same text gives the same model."""
    paths = check_inputs(inputs)
    if vocab_size <= BYTES_AND_MARKS:
        raise DataError(
            f"vocab_size {vocab_size} leaves nothing for text: {BYTES_AND_MARKS} go to bytes and special tokens. "
            "Fix: some thousands."
        )
    prefix = output.with_suffix("")
    prefix.parent.mkdir(parents=True, exist_ok=True)
    temporary = prefix.with_name(f".{prefix.name}.training-{os.getpid()}")
    try:
        sentencepiece.SentencePieceTrainer.Train(
            sentence_iterator=_lines(paths, keys),
            model_prefix=str(temporary),
            model_type="bpe",
            vocab_size=vocab_size,
            byte_fallback=True,
            split_digits=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            character_coverage=0.9995,
            user_defined_symbols=[EOD, *SPECIAL_TOKENS],
            max_sentence_length=8 * LONGEST_LINE,
            num_threads=os.cpu_count() or 1,
            minloglevel=1,
        )
        os.replace(temporary.with_name(temporary.name + ".model"), output)
    except RuntimeError as error:
        raise DataError(
            f"vocab_size {vocab_size} does not suit {', '.join(map(str, paths))}: SentencePiece says '{error}'. "
            "Fix: a smaller --vocab-size, or more text."
        ) from None
    finally:
        for ending in (".model", ".vocab"):
            temporary.with_name(temporary.name + ending).unlink(missing_ok=True)
    return output


def _lines(paths: Sequence[Path], keys: Sequence[str]) -> Iterator[str]:
    # Line by line, so that a line break never becomes part of a piece: as published, it is the byte <0x0A>.
    empty = True
    for document in read_documents(paths, keys):
        for text in document.texts:
            for line in text.splitlines():
                for start in range(0, len(line), LONGEST_LINE):
                    empty = False
                    yield line[start : start + LONGEST_LINE]
    if empty:
        raise DataError(f"input {', '.join(map(str, paths))} holds no text. Fix: name files with some.")

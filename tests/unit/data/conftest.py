"""A small tokenizer, and text for it: what the tests of this room share."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from pathlib import Path

import pytest

from megatron_yuan.data.tokenizer import Tokenizer
from megatron_yuan.data.train_tokenizer import train_tokenizer

WORDS = (
    "the cat reads one long book by night and buys seven pears for 12 coins 猫 在 夜里 读 一本 长书 给 小明 苹果 。 é"
)
LAYOUT = ("\n", "  ", "    return x", "\t", "🙂", "ß", "龘")


def make_texts(seed: int, number: int) -> list[str]:
    """Bilingual texts of random words, runs of spaces, line breaks and characters that no vocabulary has."""
    source = random.Random(seed)
    choices = (*WORDS.split(), *LAYOUT)
    return [" ".join(source.choices(choices, k=source.randint(1, 60))) + "." for _ in range(number)]


def write_jsonl(path: Path, texts: Iterable[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of 300 texts."""
    return write_jsonl(tmp_path_factory.mktemp("corpus") / "corpus.jsonl", make_texts(0, 300))


@pytest.fixture(scope="session")
def tokenizer(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A SentencePiece model of 400 pieces, special tokens included."""
    return Tokenizer(train_tokenizer([corpus], tmp_path_factory.mktemp("tokenizer") / "tokenizer.model", 400))

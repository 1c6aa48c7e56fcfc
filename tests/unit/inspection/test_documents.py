"""Documents of a set, looked at: decoded, found by text, counted by length, held against their passport."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest

from megatron_yuan.data.preprocess import preprocess
from megatron_yuan.data.tokenizer import Tokenizer
from megatron_yuan.data.train_tokenizer import train_tokenizer
from megatron_yuan.errors import ConfigError, DataError
from megatron_yuan.inspection.documents import Documents, one_line, shown
from megatron_yuan.inspection.lengths import describe_lengths, draw_lengths
from megatron_yuan.inspection.soundness import verify_pair
from tests.indexed_data import alter_passport, counting_documents, write_indexed
from tests.unit.data.conftest import make_texts, write_jsonl

TEXTS = [*make_texts(0, 200), "two<sep>pears", " leading space", "龘 unknown 🙂", "tab\tand\nline"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    return Tokenizer(train_tokenizer([write_jsonl(folder / "t.jsonl", TEXTS)], folder / "tokenizer.model", 400))


@pytest.fixture
def prefix(tmp_path: Path, tokenizer: Tokenizer) -> str:
    preprocess([write_jsonl(tmp_path / "t.jsonl", TEXTS)], tmp_path / "set", tokenizer, append_eod=True)
    return str(tmp_path / "set_text_document")


def verified(prefix: str, tokenizer: Tokenizer | None, folder: Path) -> list[str]:
    said: list[str] = []
    (folder / "nowhere").mkdir(exist_ok=True)
    verify_pair(prefix, tokenizer, folder / "nowhere", said.append)
    return said


def test_a_document_reads_as_it_was_written(prefix: str, tokenizer: Tokenizer) -> None:
    documents = Documents(prefix, tokenizer)
    assert len(documents) == len(TEXTS)
    assert documents.text(200) == "two<sep>pears<eod>"
    assert documents[200].tolist() == [*tokenizer.encode("two<sep>pears"), tokenizer.eod_id]
    with pytest.raises(ConfigError, match=r"document is 204, but .* has 204: give a number from 0 to 203"):
        documents.text(204)
    with pytest.raises(ConfigError, match="document is -1"):
        documents.text(-1)


WANTED = ["cat", "pears", "two<sep>pears", "<sep>p", " leading", "龘", "🙂", "12 coins", "\t", "line<eod>", "s<eod>"]
WANTED += ["猫 在", "no such text", "k by", ".", "\n  ", "e", "<eod>"]


@pytest.mark.parametrize("wanted", WANTED)
def test_finding_finds_what_a_look_at_every_text_finds(prefix: str, tokenizer: Tokenizer, wanted: str) -> None:
    documents = Documents(prefix, tokenizer)
    texts = [documents.text(number) for number in range(len(documents))]
    slow = [(number, text.find(wanted)) for number, text in enumerate(texts) if wanted in text]
    assert list(documents.find(wanted)) == slow


def test_what_is_found_is_shown_on_one_line() -> None:
    assert one_line("a\nb\t\x1b[2J猫\u202e") == r"a\nb\t\x1b[2J猫" + r"\u202e"
    assert shown("x" * 100 + "猫" + "y" * 100, 100, 1) == "..." + "x" * 40 + "猫" + "y" * 40 + "..."


def test_lengths_are_told_and_drawn(prefix: str, tmp_path: Path) -> None:
    lengths = Documents(prefix).lengths
    lines = describe_lengths("set", lengths)
    assert lines[0].startswith(f"set: {len(lengths)} documents, {int(lengths.sum()):,} tokens")
    shares = [float(share) for share in re.findall(r"([0-9.]+)% of documents", "\n".join(lines))]
    assert sum(shares) == pytest.approx(100, abs=0.5)
    draw_lengths("set", lengths, tmp_path / "lengths.png")
    assert (tmp_path / "lengths.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ConfigError, match=r"png is .*lengths\.txt, but must be a picture"):
        draw_lengths("set", lengths, tmp_path / "lengths.txt")
    with pytest.raises(ConfigError, match="which cannot be written"):
        draw_lengths("set", lengths, tmp_path / "nowhere" / "lengths.png")
    one = np.array([7, 7], np.int32)
    draw_lengths("alike", one, tmp_path / "alike.png")
    assert describe_lengths("alike", one)[-1].endswith("#" * 40)


def test_a_sound_pair_is_verified_and_any_changed_byte_is_named(
    prefix: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    said = verified(prefix, tokenizer, tmp_path)
    assert "204 documents end in <eod>" in said[0] and said[1].endswith("as its passport says")
    data = Path(f"{prefix}.bin")
    before, seen = data.read_bytes(), data.stat()
    for place in (0, len(before) // 2, len(before) - 1):
        data.write_bytes(before[:place] + bytes([before[place] ^ 1]) + before[place + 1 :])
        os.utime(data, ns=(seen.st_atime_ns, seen.st_mtime_ns))
        with pytest.raises(DataError, match=r"\.bin has changed since its passport was written"):
            verified(prefix, None, tmp_path)
    data.write_bytes(before)
    assert verified(prefix, None, tmp_path)


def test_a_passport_of_another_tokenizer_or_end_is_refused(prefix: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    other = Tokenizer(
        train_tokenizer([write_jsonl(tmp_path / "o.jsonl", make_texts(9, 300))], tmp_path / "other.model", 380)
    )
    with pytest.raises(DataError, match=r"other\.model is not the one that made"):
        verified(prefix, other, tmp_path)
    alter_passport(prefix, eod_id=tokenizer.eod_id + 1)
    with pytest.raises(DataError, match="204 of 204 documents do not end with"):
        verified(prefix, None, tmp_path)


def test_a_pair_of_megatrons_needs_a_tokenizer_to_be_held_against(tmp_path: Path, tokenizer: Tokenizer) -> None:
    made = write_indexed(tmp_path / "made", counting_documents(0, 20))
    with pytest.raises(DataError, match=r"has no passport \(PREFIX.json\).*--tokenizer-model"):
        verified(made, None, tmp_path)
    assert "all ids below" in "".join(verified(made, tokenizer, tmp_path))
    outside = write_indexed(tmp_path / "outside", [np.array([5, tokenizer.vocab_size, 1])])
    with pytest.raises(DataError, match=f"token 1 is id {tokenizer.vocab_size}, but the vocabulary has"):
        verified(outside, tokenizer, tmp_path)

from __future__ import annotations

import gzip

import pytest
import sentencepiece

from megatron_yuan.data.tokenizer import SPECIAL_TOKENS, Tokenizer
from megatron_yuan.data.train_tokenizer import RESERVED, train_tokenizer
from megatron_yuan.errors import DataError
from tests.unit.data.conftest import write_jsonl


def pieces(tokenizer: Tokenizer) -> list[str]:
    model = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer.path))
    return [model.id_to_piece(i) for i in range(model.get_piece_size())]


def test_the_vocabulary_has_exactly_the_size_asked_for(tokenizer):
    assert tokenizer.vocab_size == len(pieces(tokenizer)) == 400


def test_special_tokens_and_all_bytes_are_pieces(tokenizer):
    found = pieces(tokenizer)
    assert set(SPECIAL_TOKENS) <= set(found)
    assert {f"<0x{byte:02X}>" for byte in range(256)} <= set(found)


def test_digits_stand_alone_and_line_breaks_are_bytes(tokenizer):
    learned = [piece for piece in pieces(tokenizer)[RESERVED:] if len(piece.strip("▁")) > 1]
    assert learned
    assert not [piece for piece in learned if any(c.isdigit() for c in piece)]
    assert not [piece for piece in pieces(tokenizer) if "\n" in piece]


def test_the_same_text_gives_the_same_model(corpus, tokenizer, tmp_path):
    again = train_tokenizer([corpus], tmp_path / "again.model", 400)
    assert again.read_bytes() == tokenizer.path.read_bytes()


def test_gzip_and_several_files_are_read(corpus, tokenizer, tmp_path):
    lines = corpus.read_bytes().splitlines(keepends=True)
    first, second = tmp_path / "a.jsonl.gz", tmp_path / "b.jsonl"
    first.write_bytes(gzip.compress(b"".join(lines[:100])))
    second.write_bytes(b"".join(lines[100:]))
    model = train_tokenizer([first, second], tmp_path / "both.model", 400)
    assert model.read_bytes() == tokenizer.path.read_bytes()


@pytest.mark.parametrize(("size", "fix"), [(30_000, "or less"), (RESERVED + 1, "or more"), (100, "thousands")])
def test_a_size_that_the_text_cannot_support_names_one_that_it_can(corpus, tmp_path, size, fix):
    with pytest.raises(DataError, match=rf"vocab_size {size} .*Fix: --vocab-size .*{fix}"):
        train_tokenizer([corpus], tmp_path / "t.model", size)
    assert not list(tmp_path.iterdir())


def test_the_size_named_as_the_fix_works(corpus, tmp_path):
    with pytest.raises(DataError) as caught:
        train_tokenizer([corpus], tmp_path / "t.model", 30_000)
    largest = int(str(caught.value).split("--vocab-size ")[1].split()[0])
    assert Tokenizer(train_tokenizer([corpus], tmp_path / "t.model", largest)).vocab_size == largest


def test_a_broken_line_is_named_and_an_older_model_stays(tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"text": "fine"}\n{"text": \n', encoding="utf-8")
    (tmp_path / "t.model").write_bytes(b"older")
    with pytest.raises(DataError, match=r"bad\.jsonl, line 2: not JSON"):
        train_tokenizer([path], tmp_path / "t.model", 400)
    assert (tmp_path / "t.model").read_bytes() == b"older"


def test_no_text_at_all_is_an_error(tmp_path):
    with pytest.raises(DataError, match="holds no text"):
        train_tokenizer([write_jsonl(tmp_path / "empty.jsonl", ["", "<sep>"])], tmp_path / "t.model", 400)

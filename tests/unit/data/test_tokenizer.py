from __future__ import annotations

import json

import pytest

from megatron_yuan.data.tokenizer import EOD, SPECIAL_TOKENS, Tokenizer
from megatron_yuan.errors import DataError
from tests.shared import SHARED, needs_shared

MODEL = SHARED / "tokenizer" / "tokenizer.model"


@pytest.fixture(scope="module")
def published() -> Tokenizer:
    return Tokenizer(MODEL)


@needs_shared
def test_ids_and_decoded_text_equal_the_published_tokenizers(published):
    golden = json.loads((SHARED / "tokenizer" / "golden_encodings.json").read_text(encoding="utf-8"))
    for case in golden["cases"]:
        assert published.encode(case["text"]) == case["ids"], case["text"]
        assert published.decode(case["ids"]) == case["decoded"], case["text"]
    assert published.special_ids == golden["special_tokens"]
    assert published.vocab_size == golden["vocab_size"]
    assert (published.eod_id, published.pad_id) == (77185, 77188)


# What transformers 4.41.2 (LlamaTokenizer, legacy) gives where its rules surprise.
@needs_shared
@pytest.mark.parametrize(
    ("ids", "text"),
    [
        ([77185, 263], "<eod>a"),
        ([263, 77185], " a<eod>"),
        ([77185, 134953], "<eod> <mask>"),
        ([134953, 29871], "<mask> "),
        ([29871, 134953], "<mask>"),
        ([77187, 77187, 263], "<sep><sep>a"),
        ([77187, 29874], "<sep> a"),
        ([77187, 77187, 29874], "<sep><sep>a"),
    ],
)
def test_spaces_around_special_tokens_follow_the_legacy_rules(published, ids, text):
    assert published.decode(ids) == text


@needs_shared
def test_begin_and_unknown_are_tokens_in_the_text_and_the_end_is_not(published):
    assert published.encode("<s>") == [1]
    assert published.encode("<unk>") == [0]
    assert published.encode("</s>") != [2]


def test_each_text_between_special_tokens_is_encoded_by_itself(tokenizer):
    sep = tokenizer.special_ids["<sep>"]
    question, answer = "How many apples?", "Seven apples."
    expected = [*tokenizer.encode(question), sep, *tokenizer.encode(answer), tokenizer.eod_id]
    assert tokenizer.encode(f"{question}<sep>{answer}<eod>") == expected


def test_nothing_is_put_before_or_after_the_text(tokenizer):
    assert tokenizer.encode("") == []
    assert tokenizer.decode([]) == ""
    assert not {0, 1, 2, *tokenizer.special_ids.values()} & set(tokenizer.encode("a few words 和一些字"))


@pytest.mark.parametrize(
    "text",
    [
        "plain words",
        "两行\n文字，。",
        "def f(x):\n    return x + 1\n\n\n",
        "tab\tand\r\n",
        "unseen: 𠮷 😀 ﷺ \u200b",
        "ends in space ",
        "<eo and sep> are not special",
    ],
)
def test_text_comes_back_as_it_was(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_every_special_token_is_one_id_below_the_vocabulary(tokenizer):
    assert set(tokenizer.special_ids) == set(SPECIAL_TOKENS)
    for token, number in tokenizer.special_ids.items():
        assert tokenizer.encode(token) == [number]
        assert tokenizer.decode([number]) == token
        assert number < tokenizer.vocab_size


def test_half_a_surrogate_pair_is_an_error_in_words(tokenizer):
    with pytest.raises(DataError, match="surrogate"):
        tokenizer.encode("x \ud800 y")


@pytest.mark.parametrize("outside", [-1, 10**6])
def test_an_id_outside_the_vocabulary_is_an_error(tokenizer, outside):
    with pytest.raises(DataError, match=f"token id {outside} "):
        tokenizer.decode([5, outside])


def test_a_missing_model_is_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.model"):
        Tokenizer(tmp_path / "none.model")


@pytest.mark.parametrize("content", [b"", b"not a model", bytes(range(256)) * 20])
def test_a_file_of_another_kind_is_refused(tmp_path, content):
    path = tmp_path / "other.model"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"other\.model is not a SentencePiece model"):
        Tokenizer(path)


def test_the_end_of_a_document_is_named_eod(tokenizer):
    assert tokenizer.special_ids[EOD] == tokenizer.eod_id


def test_a_model_without_an_end_of_document_is_refused(tokenizer, tmp_path):
    (tmp_path / "a.model").write_bytes(tokenizer.path.read_bytes().replace(b"<eod>", b"<eos>"))
    with pytest.raises(DataError, match=r"a\.model has no piece <eod>.*tools/train_tokenizer"):
        Tokenizer(tmp_path / "a.model")


def test_a_model_whose_pieces_are_no_text_is_refused(tokenizer, tmp_path):
    (tmp_path / "a.model").write_bytes(tokenizer.path.read_bytes().replace("龘".encode(), b"\xff\xff\xff"))
    with pytest.raises(DataError, match=r"a\.model is not a SentencePiece model"):
        Tokenizer(tmp_path / "a.model")

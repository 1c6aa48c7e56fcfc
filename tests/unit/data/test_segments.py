"""Texts encoded segment by segment, and long ones part by part, have the ids that they have as a whole."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

from megatron_yuan.data import long_text, readers
from megatron_yuan.data.encode import Encoder, smallest_dtype
from megatron_yuan.data.preprocess import preprocess
from megatron_yuan.data.segments import Segments
from megatron_yuan.data.tokenizer import Tokenizer
from megatron_yuan.errors import DataError
from megatron_yuan.mcore.indexed import IndexedDataset
from tests.shared import SHARED
from tests.unit.data.conftest import make_texts, write_jsonl

PIECES = (
    *"abc 12,.\n\t猫读夜书é🙂龘\u2581\u3000\ufeff\u0301",
    "  ",
    "<eod>",
    "<sep>",
    "<unk>",
    "<s>",
    "<n>",
    "the ",
    "猫在",
    "<eo",
    "d>",
)


def odd_texts(seed: int, number: int) -> Iterator[str]:
    """Texts of whatever may stand next to each other."""
    draw = random.Random(seed)
    for _ in range(number):
        yield "".join(draw.choices(PIECES, k=draw.randint(1, 80)))


def trained(texts: list[str], **options: object) -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=model, minloglevel=2, hard_vocab_limit=False, **options
    )
    return model.getvalue()


MODELS = {
    "bpe": {"model_type": "bpe", "byte_fallback": True},
    "bpe without prefix": {"model_type": "bpe", "byte_fallback": True, "add_dummy_prefix": False},
    "bpe without bytes": {"model_type": "bpe"},
    "bpe over blanks": {"model_type": "bpe", "byte_fallback": True, "split_by_whitespace": False},
    "bpe that normalises": {"model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "nmt_nfkc"},
    "bpe with words": {"model_type": "bpe", "byte_fallback": True, "user_defined_symbols": ["12", "猫读", " <n>"]},
    "unigram": {"model_type": "unigram", "byte_fallback": True},
}


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    options = {"vocab_size": 450, "normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    path = tmp_path_factory.mktemp("model") / "t.model"
    path.write_bytes(trained(make_texts(1, 300), **{**options, **MODELS[request.param]}))
    if b"<eod>" not in path.read_bytes():
        symbols = ["<eod>", *MODELS[request.param].get("user_defined_symbols", [])]
        options = {**options, **MODELS[request.param], "user_defined_symbols": symbols}
        path.write_bytes(trained(make_texts(1, 300), **options))
    return Tokenizer(path)


def test_segments_have_the_ids_of_the_whole(model: Tokenizer) -> None:
    encoder = Encoder(model, ["text"], append_eod=False)
    texts = [*odd_texts(1, 1500), *make_texts(2, 100)]
    ids, lengths = encoder._encode(texts)
    assert ids.tolist() == [each for text in texts for each in model.encode(text)]
    assert lengths.tolist() == [len(model.encode(text)) for text in texts]


def test_a_worker_encodes_in_one_thread(model: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    threads, whole = list[int](), sentencepiece.SentencePieceProcessor.encode

    def counted(self, given, **options):
        if isinstance(given, list):
            threads.append(options.get("num_threads", -1))
        return whole(self, given, **options)

    monkeypatch.setattr(sentencepiece.SentencePieceProcessor, "encode", counted)
    Encoder(model, ["text"], append_eod=False)._encode(make_texts(2, 5))
    assert threads == [1]


def test_parts_have_the_ids_of_the_whole(model: Tokenizer) -> None:
    encoder = Encoder(model, ["text"], append_eod=False)
    if not encoder.segments.sound:
        pytest.skip("texts of this model are never cut")
    draw = random.Random(3)
    cuts = 0
    for text in odd_texts(4, 800):
        at = encoder.segments.last_cut(text[: draw.randint(1, len(text))])
        before, _ = encoder._encode([text[:at]], ends=False) if at else (np.zeros(0, np.int64), None)
        after, _ = encoder._encode([text[at:]], continued=at > 0)
        assert [*before.tolist(), *after.tolist()] == model.encode(text), (text, at)
        cuts += at > 0
    assert cuts > 100


def test_models_that_look_at_the_whole_text_are_not_cut(tmp_path: Path) -> None:
    options = {"vocab_size": 450, "user_defined_symbols": ["<eod>"]}
    for name, made in (("unigram", {"model_type": "unigram"}), ("nfkc", {"model_type": "bpe", "byte_fallback": True})):
        (tmp_path / f"{name}.model").write_bytes(trained(make_texts(1, 300), **options, **made))
        tokenizer = Tokenizer(tmp_path / f"{name}.model")
        assert not Segments(tokenizer, smallest_dtype(tokenizer.vocab_size)).sound


@pytest.mark.skipif(not SHARED.exists(), reason="the published tokenizer is not here")
def test_segments_of_the_published_tokenizer_have_its_ids() -> None:
    tokenizer = Tokenizer(next((SHARED / "tokenizer").glob("*.model")))
    encoder = Encoder(tokenizer, ["text"], append_eod=True)
    assert encoder.segments.sound
    texts = list(odd_texts(5, 1000))
    ids, _ = encoder._encode(texts)
    assert ids.tolist() == [each for text in texts for each in (*tokenizer.encode(text), tokenizer.eod_id)]


@pytest.mark.parametrize("form", ["json", "json escaped", "txt", "parquet"])
def test_long_documents_are_those_of_short_ones(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    draw = random.Random(6)
    texts = ["".join(odd_texts(i, draw.choice([1, 2, 40]))).replace("\0", "") + "x" for i in range(30)]
    if form == "txt":
        texts = [text.replace("\n", " ").replace("[SEP]", "").strip() for text in texts]
        path = tmp_path / "a.txt"
        path.write_text("".join(text + "\n" for text in texts), encoding="utf-8", newline="")
        texts = [text.removeprefix("<n>").strip().replace("<n>", "\n") for text in texts]
    elif form == "parquet":
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        path = tmp_path / "a.parquet"
        parquet.write_table(pyarrow.table({"text": texts}), path)
    else:
        path = tmp_path / "a.jsonl"
        if form == "json":
            write_jsonl(path, texts)
        else:
            path.write_text("".join(json.dumps({"n": 1, "text": text}) + "\n" for text in texts))
    monkeypatch.setattr("megatron_yuan.data.tasks.LONG_BYTES", 200)
    monkeypatch.setattr(long_text, "SLICE_BYTES", 64)
    monkeypatch.setattr(long_text, "_LONG_STRING", 100)
    monkeypatch.setattr(readers, "BATCH_BYTES", 150)
    (passport,) = preprocess([path], tmp_path / "out", tokenizer, append_eod=True)
    found = [ids.tolist() for ids in IndexedDataset(str(tmp_path / "out_text_document"))]
    assert found == [[*tokenizer.encode(text), tokenizer.eod_id] for text in texts]
    assert passport.text_bytes == sum(len(text.encode()) for text in texts)


def test_lines_behind_a_long_one_keep_their_numbers(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one"}\n{"text": "' + "two " * 100 + '"}\n{"text": "three"}\nbroken\n')
    monkeypatch.setattr("megatron_yuan.data.tasks.LONG_BYTES", 200)
    monkeypatch.setattr(readers, "BATCH_BYTES", 300)
    with pytest.raises(DataError, match=r"a\.jsonl, line 4: not JSON"):
        preprocess([path], tmp_path / "out", tokenizer, append_eod=True)


def test_a_long_row_is_rejected_for_what_a_short_one_is(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filler = "x" * 300
    lines = [
        json.dumps({"text": "a\0b", "other": filler}),
        json.dumps({"text": filler + "\0", "other": ""}),
        json.dumps({"text": "", "other": filler}),
        json.dumps({"text": "one", "other": filler + "\0"}),
        f'{{"text": "one", "other": "{filler}\\ud800"}}',
        f'{{"text": "{filler}\\ud800"}}',
        f'{{"text": "one", "other": "{filler}\\u00"}}',
        json.dumps({filler: 1, "other": filler}),
        json.dumps({filler: filler, "text": "one"}),
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(lines))
    monkeypatch.setattr(long_text, "_LONG_STRING", 100)
    monkeypatch.setattr(readers, "BATCH_BYTES", 150)
    reasons = {}
    for name, limit in (("short", 10**6), ("long", 200)):
        monkeypatch.setattr("megatron_yuan.data.tasks.LONG_BYTES", limit)
        (passport,) = preprocess([path], tmp_path / name, tokenizer, append_eod=True, on_error="skip")
        rejects = list(map(json.loads, (tmp_path / f"{name}_rejects.jsonl").read_text().splitlines()))
        assert all(len(each["why"]) < 300 for each in rejects)
        assert "its keys are 'xxxx" in rejects[-1]["why"]
        reasons[name] = passport.documents, [(each["line"], each["reason"]) for each in rejects]
    assert reasons["long"] == reasons["short"]
    assert reasons["short"][0] == 3

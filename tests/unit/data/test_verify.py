from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from megatron_yuan.config.schema import DataConfig
from megatron_yuan.data import verify
from megatron_yuan.data.datasets import open_sources
from megatron_yuan.data.preprocess import preprocess
from megatron_yuan.data.record import check_same_sets
from megatron_yuan.data.tokenizer import Tokenizer
from megatron_yuan.data.verify import verify_sources
from megatron_yuan.errors import DataError
from tests.indexed_data import EOD, alter_passport, counting_documents, write_indexed
from tests.unit.data.conftest import make_texts, write_jsonl

VOCAB = 400


@pytest.fixture
def pair(tokenizer: Tokenizer, tmp_path: Path) -> str:
    """A set with a passport."""
    text = write_jsonl(tmp_path / "a.jsonl", make_texts(1, 50))
    preprocess([text], tmp_path / "made", tokenizer, append_eod=True)
    return str(tmp_path / "made_text_document")


@pytest.fixture
def stranger(tmp_path: Path) -> str:
    """A set without one."""
    return write_indexed(tmp_path / "zh_text_document", counting_documents(0, 300))


def config(*path: str, **changes) -> DataConfig:
    return replace(DataConfig(data_path=path, seq_length=32, split="1,0,0"), **changes)


def checked(settings: DataConfig, vocab_size: int = VOCAB, said: list[str] | None = None):
    return verify_sources(
        open_sources(settings, vocab_size), settings, vocab_size, (said if said is not None else []).append
    )


def alter_byte(path: str, place: int) -> None:
    with open(path, "r+b") as file:
        file.seek(place)
        old = file.read(1)
        file.seek(place)
        file.write(bytes([old[0] ^ 1]))


def let_it_settle(*prefixes: str) -> None:
    """Past the clock's tick in which files were written, as data are when they are trained on."""
    time.sleep(verify.Stamps.__init__.__globals__["FINE_NS"] / 1e9 + 0.02)


def test_data_as_they_were_made_are_taken(pair):
    said = []
    (identity,) = checked(config(pair), said=said)
    passport = json.loads(Path(pair + ".json").read_text())
    assert (identity.idx_sha256, identity.bin_sha256) == (passport["idx_sha256"], passport["bin_sha256"])
    assert said == []


def test_a_changed_token_is_refused_although_size_and_times_are_the_old_ones(pair):
    before = os.stat(pair + ".bin")
    alter_byte(pair + ".bin", 20)
    os.utime(pair + ".bin", ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(DataError, match=r"\.bin has changed since its passport was written .*Fix: preprocess again"):
        checked(config(pair))


def test_a_token_changed_after_it_was_found_right_is_refused(pair):
    let_it_settle(pair)
    checked(config(pair))
    alter_byte(pair + ".bin", 20)
    with pytest.raises(DataError, match=r"\.bin has changed"):
        checked(config(pair))


def test_an_index_of_another_order_is_refused(pair):
    # Two lengths and the offset between them exchanged: sound in itself, but no longer what was made.
    data = bytearray(Path(pair + ".idx").read_bytes())
    lengths = np.frombuffer(data, np.int32, 50, 34)
    offsets = np.frombuffer(data, np.int64, 50, 34 + 200)
    lengths[[3, 4]] = lengths[[4, 3]]
    offsets[4] = offsets[3] + 2 * lengths[3]
    Path(pair + ".idx").write_bytes(data)
    with pytest.raises(DataError, match=r"\.idx has changed since its passport"):
        checked(config(pair))


def test_what_was_read_once_is_not_read_again(pair, monkeypatch):
    let_it_settle(pair)
    first = checked(config(pair))
    monkeypatch.setattr(verify, "_read", lambda *_: pytest.fail("read again"))
    assert checked(config(pair)) == first


def test_without_verification_nothing_is_read(pair, stranger, monkeypatch):
    monkeypatch.setattr(verify, "_read", lambda *_: pytest.fail("read"))
    said = []
    settings = config("1", pair, "1", stranger, verify_data=False)
    known, unknown = checked(settings, said=said)
    assert known.bin_sha256 and unknown.bin_sha256 is None
    assert len(said) == 1 and "zh has no passport" in said[0] and "--no-verify-data" in said[0]


def test_a_set_without_a_passport_costs_one_warning(stranger):
    said = []
    checked(config(stranger, eod_id=EOD), said=said)
    assert said == [
        "warning: zh has no passport (made by Megatron-LM?): nothing tells which tokenizer made it; every id is inside "
        "the vocabulary"
    ]


def test_ids_that_the_given_tokenizer_does_not_have_are_told_in_that_warning(tokenizer, tmp_path):
    eod = tokenizer.eod_id
    path = write_indexed(tmp_path / "zh", [np.array([5] * 60 + [eod]), np.array([4, tokenizer.vocab_size + 7, eod])])
    said = []
    checked(config(path, tokenizer_model=str(tokenizer.path)), vocab_size=500, said=said)
    assert len(said) == 1 and "inside the vocabulary" not in said[0]
    assert said[0].endswith("--tokenizer-model, which has 400 ids: the highest here is 407")


def test_an_id_outside_the_vocabulary_is_named_with_its_place(tmp_path):
    path = write_indexed(tmp_path / "a", [np.array([1, 2, 3] * 20), np.array([4, 300, 2])])
    checked(config(path, eod_id=EOD), 301)
    with pytest.raises(DataError, match=r"/a: token 61 is id 300, but the vocabulary has 300 \(--vocab-size\)"):
        checked(config(path, eod_id=EOD), 300)


def test_a_negative_id_is_outside_the_vocabulary(tmp_path):
    path = write_indexed(tmp_path / "a", [np.array([1] * 50 + [-7])], np.int32)
    with pytest.raises(DataError, match="token 50 is id -7"):
        checked(config(path, eod_id=EOD), 300)


def test_ids_are_looked_at_to_the_last(tmp_path, monkeypatch):
    monkeypatch.setattr("megatron_yuan.data.verify.BLOCK_BYTES", 14)
    path = write_indexed(tmp_path / "a", [np.array([5] * 49 + [99])])
    with pytest.raises(DataError, match="token 49 is id 99"):
        checked(config(path, eod_id=EOD), 99)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"tokenizer_sha256": "0" * 64}, "is not the one that made"),
        ({"vocab_size": 300}, "was made with 300 ids, but tokenizer_model .* has 400"),
        ({"vocab_size": 500}, "was made with 500 ids"),
        ({"eod_id": 7}, r"<eod> of tokenizer_model .* is \d+, but in .* a document ends with 7"),
        ({"eod_id": 4000}, "its passport says that 4000 ends a document"),
        ({"bin_bytes": 3}, r"\.bin has \d+ bytes, its passport says 3"),
        ({"idx_bytes": 3}, r"\.idx has \d+ bytes, its passport says 3"),
        ({"documents": 3}, "has 50 documents, its passport says 3"),
        ({"tokens": 3}, r"has \d+ tokens, its passport says 3"),
        ({"bin_sha256": "0" * 64}, r"\.bin has changed"),
        ({"idx_sha256": "0" * 64}, r"\.idx has changed"),
    ],
)
def test_every_mismatch_with_the_passport_is_refused(pair, tokenizer, changes, says):
    alter_passport(pair, **changes)
    with pytest.raises(DataError, match=says) as caught:
        checked(config(pair, tokenizer_model=str(tokenizer.path)))
    assert "Fix: " in str(caught.value) and "\n" not in str(caught.value)


def test_a_vocabulary_smaller_than_the_datas_is_refused(pair):
    with pytest.raises(DataError, match=r"was made with 400 ids, but vocab_size is 300. Fix: --vocab-size 400"):
        checked(config(pair), 300)


def test_a_run_goes_on_with_the_data_it_was_trained_on_wherever_they_lie(pair, tmp_path):
    saved = [asdict(each) for each in checked(config(pair))]
    os.mkdir(tmp_path / "elsewhere")
    for ending in (".bin", ".idx", ".json"):
        os.rename(pair + ending, tmp_path / "elsewhere" / f"made_text_document{ending}")
    check_same_sets(saved, checked(config(str(tmp_path / "elsewhere" / "made_text_document"))), "runs/a")


def test_a_run_does_not_go_on_with_data_made_anew_in_their_place(pair, tokenizer, tmp_path):
    saved = [asdict(each) for each in checked(config(pair))]
    preprocess(
        [write_jsonl(tmp_path / "b.jsonl", make_texts(2, 50))], tmp_path / "made", tokenizer, True, overwrite=True
    )
    with pytest.raises(DataError, match=r"the documents of made .* are not those that the run in runs/a was trained"):
        check_same_sets(saved, checked(config(pair)), "runs/a")


def test_a_run_does_not_go_on_with_other_weights_or_another_number_of_sets(pair, stranger):
    saved = [asdict(each) for each in checked(config("1", pair, "1", stranger))]
    check_same_sets(saved, checked(config("2", pair, "2", stranger)), "runs/a")
    with pytest.raises(DataError, match=r"has a share of 0\.25, but of 0\.5 in the run in runs/a"):
        check_same_sets(saved, checked(config("1", pair, "3", stranger)), "runs/a")
    with pytest.raises(DataError, match="the blend has 1 sets, but the run in runs/a was trained on 2"):
        check_same_sets(saved, checked(config(pair)), "runs/a")


def test_a_passport_of_an_earlier_version_is_still_one(pair, tokenizer):
    path = Path(f"{pair}.json")
    told = json.loads(path.read_text())
    second = {name: value for name, value in told.items() if name not in ("sha256_of_entries", "version")}
    since = ("tool", "special_ids", "text_bytes", "rejects", "inputs", "json_key", "json_keys", "on_error")
    first = {name: value for name, value in second.items() if name not in since}
    path.write_text(json.dumps({"version": 1, **first}))
    assert checked(config(pair, tokenizer_model=str(tokenizer.path)))
    path.write_text(json.dumps({"version": 2, **second}))
    assert checked(config(pair, tokenizer_model=str(tokenizer.path)))
    for wrong in ({"inputs": [1]}, {"json_keys": ["text", 3]}, {"special_ids": {"\ud800": "1"}}):
        path.write_text(json.dumps({"version": 2, **second, **wrong}))
        with pytest.raises(DataError, match="damaged or newer") as caught:
            checked(config(pair))
        str(caught.value).encode()
    path.write_text(json.dumps({"version": 2, **first}))
    with pytest.raises(DataError, match=r"damaged or newer than this program \(tool is missing\)"):
        checked(config(pair))


def test_a_passport_that_says_anything_else_than_was_written_is_refused(pair):
    path = Path(f"{pair}.json")
    told = json.loads(path.read_text())
    path.write_text(json.dumps(dict(reversed(told.items()))))  # the same, written down otherwise
    assert checked(config(pair))
    token, number = next(iter(told["special_ids"].items()))
    others = (
        {"special_ids": {**told["special_ids"], token + "!": number}},
        {"tool": told["tool"].swapcase()},
        {"text_bytes": told["text_bytes"] + 1},
        {"rejects": {"empty text": 1}},
        {"an entry": "more"},
        {"version": 1},
        {"version": 2},
        {"sha256_of_entries": None},
    )
    for other in others:
        path.write_text(json.dumps(told | other))
        with pytest.raises(DataError, match=r"damaged or newer than this program \(its entries are not those"):
            checked(config(pair))

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from megatron_yuan.config.presets import PRESETS
from megatron_yuan.config.schema import DataConfig
from megatron_yuan.data.datasets import (
    build_training_samples,
    build_validation_samples,
    open_sources,
    split_tokens,
)
from megatron_yuan.data.preprocess import preprocess
from megatron_yuan.data.tokenizer import Tokenizer
from megatron_yuan.data.train_tokenizer import train_tokenizer
from megatron_yuan.errors import DataError
from megatron_yuan.parallel import topology
from tests.indexed_data import EOD, counting_documents, write_indexed
from tests.unit.data.conftest import make_texts, write_jsonl

VOCAB = 256
LENGTH = 32


@pytest.fixture(scope="module")
def world() -> Iterator[None]:
    """A world of one process, in which rank 0 builds the index files."""
    topology.start(PRESETS["tiny"])
    yield
    topology.stop()


@pytest.fixture
def pair(tmp_path: Path) -> str:
    return write_indexed(tmp_path / "zh_text_document", counting_documents(0, 300))


def config(*path: str, **changes) -> DataConfig:
    return replace(DataConfig(data_path=path, seq_length=LENGTH, eod_id=EOD, split="8,2,0"), **changes)


def numbered(first: int, documents: int, length: int = 40) -> list[np.ndarray]:
    """Documents that are nothing but their number."""
    return [np.array([first + i] * (length - 1) + [EOD]) for i in range(documents)]


def marks(samples) -> set[int]:
    """Which numbered documents are in any of `samples`."""
    return {int(token) for i in range(len(samples)) for token in samples[i][0]} - {EOD}


# What is refused, before anything is built.


def test_no_data_at_all_is_refused():
    with pytest.raises(DataError, match="data_path is empty"):
        open_sources(config(), VOCAB)


def test_a_sequence_longer_than_the_training_part_is_refused(pair):
    with pytest.raises(DataError, match=rf"seq_length 1000000 needs 1000001 tokens.*training part of {pair}"):
        open_sources(config(pair, seq_length=1_000_000), VOCAB)


def test_sets_that_validate_are_checked_too(pair):
    with pytest.raises(DataError, match="valid_data_path /nowhere"):
        open_sources(config(pair, valid_data_path=("/nowhere",)), VOCAB)


def test_an_end_of_document_that_nobody_names_is_an_error(pair):
    with pytest.raises(DataError, match=r"id of <eod> is not known.*--tokenizer-model"):
        open_sources(config(pair, eod_id=None), VOCAB)


def test_a_vocabulary_smaller_than_the_tokenizers_is_refused(pair, tokenizer):
    with pytest.raises(DataError, match=r"has 400 ids, but vocab_size is 256\. Fix: --vocab-size 400"):
        open_sources(config(pair, tokenizer_model=str(tokenizer.path)), VOCAB)


@pytest.fixture
def preprocessed(tokenizer: Tokenizer, tmp_path: Path) -> str:
    text = write_jsonl(tmp_path / "a.jsonl", make_texts(1, 50))
    preprocess([text], tmp_path / "made", tokenizer, append_eod=True)
    return str(tmp_path / "made_text_document")


def test_the_passport_or_the_tokenizer_says_what_ends_a_document(preprocessed, tokenizer):
    assert open_sources(config(preprocessed, eod_id=None), 400).eod_id == tokenizer.eod_id
    named = config(preprocessed, eod_id=None, tokenizer_model=str(tokenizer.path))
    assert open_sources(named, 400).eod_id == tokenizer.eod_id


def test_another_tokenizer_than_the_datas_is_refused(preprocessed, corpus, tmp_path):
    other = train_tokenizer([corpus], tmp_path / "other.model", 390)
    with pytest.raises(DataError, match=r"other\.model is not the one that made .*made_text_document"):
        open_sources(config(preprocessed, eod_id=None, tokenizer_model=str(other)), 400)


def test_sets_of_different_tokenizers_are_not_blended(preprocessed, corpus, tmp_path):
    other = Tokenizer(train_tokenizer([corpus], tmp_path / "other.model", 390))
    preprocess([write_jsonl(tmp_path / "b.jsonl", make_texts(2, 50))], tmp_path / "b", other, append_eod=True)
    blend = ("1", preprocessed, "1", str(tmp_path / "b_text_document"))
    with pytest.raises(DataError, match=r"different tokenizers"):
        open_sources(config(preprocessed, eod_id=None, data_path=blend), 400)


def test_an_end_of_document_unlike_the_tokenizers_is_refused(preprocessed):
    with pytest.raises(DataError, match=r"eod_id is 77, but in .* a document ends with"):
        open_sources(config(preprocessed, eod_id=77), 400)


def test_a_set_named_for_validation_must_fill_a_sample(pair, tmp_path):
    short = write_indexed(tmp_path / "short", [[EOD]])
    with pytest.raises(DataError, match=r"the validation part of .*short .* has 1\. Fix"):
        open_sources(config(pair, eod_id=EOD, valid_data_path=(short,)), 400)


def test_data_cut_after_it_was_made_is_refused(preprocessed):
    os.truncate(preprocessed + ".bin", 100)
    with pytest.raises(DataError, match=r"\.bin has 100 bytes"):
        open_sources(config(preprocessed, eod_id=None), 400)


# What is built.


def test_every_sample_has_one_token_more_than_the_sequence(world, pair):
    settings = config(pair)
    samples = build_training_samples(open_sources(settings, VOCAB), settings, 500, seed=1)
    assert len(samples) >= 500
    for i in (0, 1, 250, 499):
        tokens, mask, *_ = samples[i]
        assert tokens.shape == (LENGTH + 1,) and tokens.dtype == np.int64 and mask is None


def test_one_epoch_holds_every_token_once(world, pair):
    settings = config(pair, split="1,0,0")
    sources = open_sources(settings, VOCAB)
    number = (sources.train[0].tokens - 1) // LENGTH
    samples = build_training_samples(sources, settings, number, seed=1)
    # A sample's last token is the next one's first, so each is counted as an input only.
    found = Counter(int(token) for i in range(number) for token in samples[i][0][:-1])
    there = Counter(int(token) for document in counting_documents(0, 300) for token in document)
    assert number * LENGTH == found.total() and found <= there


def test_training_and_validation_share_no_document(world, tmp_path):
    settings = config(write_indexed(tmp_path / "a", numbered(2, 200)))
    sources = open_sources(settings, VOCAB)
    trained = marks(build_training_samples(sources, settings, 400, seed=1))
    validated = marks(build_validation_samples(sources, settings, seed=1)["a"])
    assert len(validated) >= 35 and len(trained) >= 155
    assert not trained & validated


def test_a_validation_set_of_its_own_is_measured_whole_and_apart(world, tmp_path):
    first, second, third = (write_indexed(tmp_path / name, numbered(10 * i, 9)) for i, name in enumerate("abc", 1))
    settings = config(first, valid_data_path=(second, third), split="1,0,0")
    sources = open_sources(settings, VOCAB)
    found = build_validation_samples(sources, settings, seed=1)
    assert {name: sorted(marks(samples)) for name, samples in found.items()} == {
        "b": list(range(20, 29)),
        "c": list(range(30, 39)),
    }
    assert marks(build_training_samples(sources, settings, 20, seed=1)) == set(range(10, 19))


def test_each_set_of_a_split_blend_is_validated_under_its_name(world, pair, tmp_path):
    other = write_indexed(tmp_path / "en_text_document", counting_documents(2, 100))
    settings = config("1", pair, "1", other)
    found = build_validation_samples(open_sources(settings, VOCAB), settings, seed=1)
    assert list(found) == ["zh", "en"]
    assert all(len(samples) for samples in found.values())


def test_a_validation_part_too_short_for_a_sample_is_left_out(world, pair):
    settings = config(pair, split="9999,1,0")
    assert build_validation_samples(open_sources(settings, VOCAB), settings, seed=1) == {}


def test_a_blend_keeps_its_weights(world, tmp_path):
    one = write_indexed(tmp_path / "a", numbered(2, 100))
    other = write_indexed(tmp_path / "b", numbered(102, 100))
    settings = config("0.2", one, "0.8", other, split="1,0,0")
    samples = build_training_samples(open_sources(settings, VOCAB), settings, 500, seed=1)
    for first in (50, 500):
        share = np.mean([samples[i][0].max() < 102 for i in range(first)])
        assert share == pytest.approx(0.2, abs=0.02), f"in the first {first} samples"


def test_the_order_depends_on_the_seed_alone(world, pair, tmp_path):
    def first_samples(seed: int, cache: str) -> list[list[int]]:
        settings = config(pair, data_cache_path=str(tmp_path / cache))
        samples = build_training_samples(open_sources(settings, VOCAB), settings, 100, seed)
        return [samples[i][0].tolist() for i in range(20)]

    assert first_samples(1, "one") == first_samples(1, "two")
    assert first_samples(1, "one") != first_samples(2, "one")


def test_data_made_anew_in_its_place_gets_a_new_index(world, tmp_path):
    path = write_indexed(tmp_path / "a", numbered(2, 100, length=40))
    settings = config(path, split="1,0,0")
    assert max(marks(build_training_samples(open_sources(settings, VOCAB), settings, 100, seed=1))) == 101
    write_indexed(tmp_path / "a", numbered(150, 50, length=80))
    anew = marks(build_training_samples(open_sources(settings, VOCAB), settings, 100, seed=1))
    assert anew == set(range(150, 200))


def test_a_split_that_leaves_no_document_to_train_on_is_an_error(tmp_path):
    # By tokens 0.4 of it would do, but it is one document, and megatron would look for a second one without end.
    lonely = write_indexed(tmp_path / "lonely", [np.array([5] * 4000 + [EOD])])
    with pytest.raises(DataError, match=r"/lonely \(split 0\.4,0\.6,0, in whole documents\) has 0\."):
        open_sources(config(lonely, split="0.4,0.6,0"), VOCAB)


def test_every_set_of_a_blend_must_have_a_training_part(pair, tmp_path):
    short = write_indexed(tmp_path / "short", [np.array([5, EOD])] * 9 + [np.array([5] * 900)])
    with pytest.raises(DataError, match=r"training part of .*/short \(split 8,2,0.*has 16\."):
        open_sources(config("1", pair, "1", short), VOCAB)


@pytest.mark.parametrize("split", ["969,30,1", "1,1,1", "0.3,0.3,0.4", "5,0,5", "1,0,0", "997,2,1"])
def test_parts_are_counted_as_megatron_cuts_them(world, pair, tmp_path, split):
    settings = config(pair, split=split, seq_length=1)
    sources = open_sources(settings, VOCAB)
    found = build_validation_samples(sources, settings, seed=1)
    samples = len(found["zh"]) if found else 0  # of one token each, and one more that ends the last
    assert samples == max(0, split_tokens(sources.valid[0], split, 1) - 1)


def test_a_validation_part_without_a_whole_sample_is_left_out(world, tmp_path):
    documents = [np.array([5] * 400 + [EOD])] * 8 + [np.array([6, EOD])] * 2
    settings = config(write_indexed(tmp_path / "a", documents))
    assert build_validation_samples(open_sources(settings, VOCAB), settings, seed=1) == {}

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from megatron_yuan.config.schema import DataConfig
from megatron_yuan.data import packing
from megatron_yuan.data.datasets import build_training_samples, open_sources
from tests.indexed_data import EOD, counting_documents, write_indexed

LENGTH = 32


def samples_of(number: int, *path: str, seed: int = 1, **changes):
    settings = replace(DataConfig(data_path=path, seq_length=LENGTH, eod_id=EOD, split="1,0,0"), **changes)
    return build_training_samples(open_sources(settings, 70_000), settings, number, seed)


@pytest.fixture
def pair(tmp_path: Path) -> str:
    return write_indexed(tmp_path / "here" / "zh", counting_documents(0, 300))


@pytest.fixture
def builds(monkeypatch) -> list[int]:
    """Grows with every index of a set that is built."""
    counted: list[int] = []
    order = packing.document_order

    def counting(*arguments):
        counted.append(1)
        return order(*arguments)

    monkeypatch.setattr(packing, "document_order", counting)
    return counted


def test_a_set_that_was_moved_or_copied_finds_its_index(pair, tmp_path, builds):
    cache = str(tmp_path / "cache")
    before = samples_of(100, pair, data_cache_path=cache)[3].tokens
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    shutil.rmtree(tmp_path / "here")
    assert np.array_equal(samples_of(100, str(tmp_path / "there" / "zh"), data_cache_path=cache)[3].tokens, before)
    assert len(builds) == 1


def test_an_index_of_other_settings_is_not_taken(pair, builds):
    samples_of(100, pair)
    samples_of(100, pair, seed=2)
    samples_of(100, pair, seq_length=16)
    samples_of(100, pair, split="1,1,0")
    assert len(builds) == 4
    samples_of(90, pair)
    assert len(builds) == 4, "other numbers of samples of the same epochs share one"


@pytest.mark.parametrize("weights", [None, (0.7, 0.3)])
def test_a_longer_run_sees_first_what_a_shorter_one_sees(tmp_path, weights):
    paths = [write_indexed(tmp_path / name, counting_documents(i, 30)) for i, name in enumerate("ab")]
    path = (paths[0],) if weights is None else ("0.7", paths[0], "0.3", paths[1])
    few = samples_of(20, *path)
    many = samples_of(2000, *path)
    for i in range(20):
        assert np.array_equal(few[i].tokens, many[i].tokens) and few[i].set_id == many[i].set_id


def test_no_document_is_missed_or_repeated_within_an_epoch(tmp_path):
    lengths = np.random.default_rng(0).integers(1, 90, 500)
    documents = [np.full(n, 10 + i) for i, n in enumerate(lengths)]
    tokens = int(lengths.sum())
    samples = samples_of(4 * tokens // LENGTH - 1, write_indexed(tmp_path / "a", documents))
    whole = dict(enumerate(lengths.tolist(), 10))
    seen: Counter[int] = Counter()
    for epoch in range(3):
        first, end = -(-epoch * tokens // LENGTH), -(-(epoch + 1) * tokens // LENGTH)
        for i in range(first, end):
            seen.update(samples[i].tokens[:-1].tolist())
        # A sample that reaches from one epoch into the next belongs to the first; it holds less than a sample of each.
        off = sum(abs(seen[number] - (epoch + 1) * count) for number, count in whole.items())
        assert off < LENGTH, f"tokens missed or repeated after epoch {epoch + 1}"


def test_44_sets_get_their_shares_to_a_tenth_of_a_point(tmp_path):
    weights = np.random.default_rng(1).dirichlet(np.ones(44) * 0.5) + 1e-4
    weights /= weights.sum()
    path: list[str] = []
    for i, weight in enumerate(weights):
        path += [repr(float(weight)), write_indexed(tmp_path / f"set{i}", [np.full(4000, 10 + i)] * 5)]
    samples = samples_of(100_000, *path, data_cache_path=str(tmp_path / "cache"))
    assert isinstance(samples, packing.Blend)
    counts = np.bincount(samples.set_of[:100_000], minlength=44)
    assert np.abs(counts / 100_000 - weights).max() < 0.001
    assert counts.tolist() == samples.counts
    assert all(samples[i].tokens[0] == 10 + samples[i].set_id for i in range(0, 100_000, 997))


def test_a_set_too_light_to_have_a_turn_is_not_opened(tmp_path):
    paths = [write_indexed(tmp_path / name, counting_documents(i, 30)) for i, name in enumerate("ab")]
    samples = samples_of(10, "1", paths[0], "1e-9", paths[1])
    assert isinstance(samples, packing.Blend)
    assert samples.counts[1] <= 1 and len(samples) == 10
    assert all(samples[i].tokens.shape == (LENGTH + 1,) for i in range(10))

"""What the project takes of megatron-core's datasets: cutting samples, reading them, and the turns of a blend."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from megatron_yuan.mcore.datasets import PackedReader, cut_into_samples, take_turns
from tests.indexed_data import counting_documents, write_indexed


def strung_together(documents: list[np.ndarray], order: np.ndarray, length: int) -> np.ndarray:
    """Samples [n, length + 1] by the plain way."""
    tokens = np.concatenate([documents[i] for i in order])
    return np.stack([tokens[at : at + length + 1] for at in range(0, len(tokens) - length, length)])


@pytest.mark.parametrize("length", [1, 7, 64, 1000])
@pytest.mark.parametrize("epochs", [1, 3])
def test_samples_are_cut_from_documents_strung_together(tmp_path: Path, length: int, epochs: int):
    documents = counting_documents(0, 12, longest=40)
    documents[3:5] = [documents[3][:0], documents[4][:1]]  # an empty one, and one of a token
    prefix = write_indexed(tmp_path / "a", documents)
    lengths = np.array([len(each) for each in documents], np.int32)
    order = np.tile(np.random.RandomState(0).permutation(12), epochs).astype(np.int32)
    samples = cut_into_samples(lengths, order, length, epochs, int(lengths.sum()))
    reader = PackedReader(
        prefix, length, {"documents": order, "samples": samples, "shuffle": np.arange(len(samples) - 1)}
    )
    expected = strung_together(documents, order, length) if lengths.sum() * epochs > length else np.zeros((0, 0))
    assert len(reader) == len(expected)
    assert all(np.array_equal(reader.tokens(i), expected[i]) for i in range(len(expected)))


def test_a_set_is_never_a_whole_sample_behind_its_share_nor_ahead():
    shares = np.array([0.5, 0.3, 0.15, 0.05])
    sets, samples = take_turns(list(shares), 2000)
    turns = np.cumsum(sets[:, None] == np.arange(4), axis=0)
    assert np.abs(turns - shares * np.arange(1, 2001)[:, None]).max() <= 1.5
    assert all(np.array_equal(samples[sets == i], np.arange((sets == i).sum())) for i in range(4))


def test_more_turns_only_follow_the_first_ones():
    few, many = take_turns([0.6, 0.4], 100), take_turns([0.6, 0.4], 1000)
    assert all(np.array_equal(a, b[:100]) for a, b in zip(few, many, strict=True))

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from megatron_yuan.data.order import document_order, epochs_for, sample_order, samples_in
from megatron_yuan.data.packing import take_turns


def test_every_epoch_holds_every_document_once_in_an_order_of_its_own():
    epochs = document_order(10, 60, 4, seed=1).reshape(4, 50)
    assert all(sorted(epoch) == list(range(10, 60)) for epoch in epochs)
    assert len({epoch.tobytes() for epoch in epochs}) == 4


@pytest.mark.parametrize(("tokens", "length"), [(103, 10), (100, 10), (101, 10), (1000, 7), (11, 10), (5, 10), (30, 1)])
def test_the_samples_of_an_epoch_come_before_those_of_the_next(tokens, length):
    order = sample_order(tokens, length, 5, seed=1)
    assert sorted(order) == list(range((5 * tokens - 1) // length)), "each sample once"
    epochs = order.astype(int) * length // tokens
    assert (np.diff(epochs) >= 0).all(), "by the token they begin with"


@pytest.mark.parametrize(("tokens", "length"), [(103, 10), (100, 10), (101, 10), (5, 10)])
def test_more_epochs_only_follow_the_first_ones(tokens, length):
    for epochs in (1, 2, 3):
        few, many = sample_order(tokens, length, epochs, 7), sample_order(tokens, length, epochs + 1, 7)
        assert np.array_equal(few, many[: len(few)])
    assert np.array_equal(document_order(0, 9, 2, 7), document_order(0, 9, 5, 7)[:18])


def test_epochs_are_as_few_as_give_the_samples():
    for tokens, length in ((103, 10), (100, 10), (101, 10), (11, 10), (3, 10)):
        for samples in range(1, 60):
            epochs = epochs_for(samples, tokens, length)
            assert samples_in(epochs, tokens, length) >= samples
            assert epochs == 1 or samples_in(epochs - 1, tokens, length) < samples


def test_the_order_is_that_of_every_earlier_release():
    assert document_order(0, 8, 2, 1234).tolist() == [0, 2, 5, 3, 4, 7, 6, 1, 6, 0, 5, 4, 3, 7, 1, 2]
    assert sample_order(25, 4, 2, 1234).tolist() == [0, 5, 1, 4, 3, 2, 6, 9, 7, 11, 10, 8]


def test_a_blends_shares_do_not_depend_on_how_python_adds_up(tmp_path: Path) -> None:
    weights = [0.1] * 10  # Python 3.12 makes 1.0 of their sum, those before 0.9999999999999999
    turns = take_turns(weights, 100, tmp_path)
    (note,) = (json.loads(path.read_text()) for path in tmp_path.glob("*.json") if "identity" in path.read_text())
    assert json.loads(note["identity"])["shares"] == weights
    assert turns["counts"].tolist() == [10] * 10

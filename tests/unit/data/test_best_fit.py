from __future__ import annotations

import numpy as np
import pytest

from megatron_yuan.data.best_fit import best_fit


def lengths_of(shape: str) -> np.ndarray:
    random = np.random.default_rng(0)
    return {
        "dialogues": np.clip(random.normal(60, 25, 8000), 20, 257).astype(np.int64),
        "even": random.integers(1, 258, 8000),
        "half a row": random.integers(110, 140, 3000),
        "whole rows": np.full(50, 257),
        "ones": np.ones(2000, np.int64),
        "one": np.array([5]),
        "none": np.zeros(0, np.int64),
    }[shape]


@pytest.mark.parametrize("shape", ["dialogues", "even", "half a row", "whole rows", "ones", "one", "none"])
def test_no_row_holds_more_than_its_room_and_none_is_empty(shape: str) -> None:
    lengths = lengths_of(shape)
    filled = np.bincount(best_fit(lengths, 257), weights=lengths)
    assert (filled <= 257).all() and (filled > 0).all()


@pytest.mark.parametrize(("shape", "least"), [("dialogues", 0.97), ("even", 0.985), ("ones", 0.97), ("whole rows", 1)])
def test_rows_are_well_filled(shape: str, least: float) -> None:
    lengths = lengths_of(shape)
    rows = best_fit(lengths, 257)
    assert lengths.sum() / ((rows.max() + 1) * 257) >= least


def test_the_same_lengths_make_the_same_rows() -> None:
    lengths = lengths_of("dialogues")
    assert (best_fit(lengths, 257) == best_fit(lengths.copy(), 257)).all()

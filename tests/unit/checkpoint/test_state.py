from __future__ import annotations

import json

import pytest

from megatron_yuan.checkpoint.state import RunState
from megatron_yuan.errors import CheckpointError

STATE = RunState(7, 56, 6, 1000, rng={"torch": [1, 2]}, extra={"scale": 0.5, "名": "值"})


def test_a_run_state_survives_json() -> None:
    assert RunState.from_json(STATE.to_json()) == STATE


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"step": -1}, "step is '-1'"),
        ({"step": 1.5}, "step is"),
        ({"tokens": True}, "tokens is"),
        ({"rng": []}, "rng is"),
        ({"surplus": 1}, "'surplus' is unknown"),
    ],
)
def test_a_wrong_field_is_named(change: dict[str, object], reason: str) -> None:
    with pytest.raises(CheckpointError, match=reason):
        RunState.from_json(json.dumps({**json.loads(STATE.to_json()), **change}))


def test_a_missing_field_is_named() -> None:
    values = json.loads(STATE.to_json())
    del values["consumed_samples"]
    with pytest.raises(CheckpointError, match="'consumed_samples' is missing"):
        RunState.from_json(json.dumps(values))


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
def test_numbers_that_are_not_finite_are_refused_both_ways(number: str) -> None:
    with pytest.raises(CheckpointError, match="not valid JSON"):
        RunState.from_json(STATE.to_json().replace("0.5", number))
    with pytest.raises(ValueError, match="JSON compliant"):
        RunState(1, 1, extra={"scale": float(number)}).to_json()

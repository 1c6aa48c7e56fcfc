"""Which steps are skipped, and when it is enough."""

from __future__ import annotations

import json
import math

import pytest

from megatron_yuan.config.schema import GuardConfig
from megatron_yuan.errors import CheckpointError
from megatron_yuan.training.guard import Guard

WATCHFUL = GuardConfig(guard_sigma=6, guard_window=8, guard_max_skips=3)


def after(config: GuardConfig, losses: list[float]) -> Guard:
    guard = Guard(config)
    for loss in losses:
        assert guard.judge(loss, 1.0) is None
    return guard


@pytest.mark.parametrize(("loss", "grad_norm", "named"), [(math.nan, 1.0, "loss"), (2.0, math.inf, "gradient norm")])
def test_what_is_not_finite_is_skipped_from_the_first_step_on(loss, grad_norm, named):
    assert (Guard(GuardConfig()).judge(loss, grad_norm) or "").startswith(f"{named} is ")


def test_spikes_are_let_through_unless_asked_for():
    assert after(GuardConfig(), [2.0] * 200).judge(1e9, 1e9) is None


def test_a_spike_is_skipped_and_is_not_part_of_the_past():
    guard = after(WATCHFUL, [2.0, 2.1, 1.9, 2.0, 2.05, 1.95, 2.0, 2.1])
    for _ in range(2):
        assert "over 6 sigma" in (guard.judge(9.0, 1.0) or "")
    assert guard.judge(2.1, 1.0) is None


def test_a_gradient_norm_spikes_by_its_own_past():
    guard = after(WATCHFUL, [2.0] * 8)
    assert "gradient norm" in (guard.judge(2.0, 50.0) or "")


def test_nothing_is_a_spike_before_the_window_is_full_nor_when_it_is_lower():
    guard = after(WATCHFUL, [9.0] * 7)
    assert guard.judge(100.0, 1.0) is None
    assert after(WATCHFUL, [9.0] * 8).judge(0.1, 0.001) is None


def test_a_run_that_stands_still_does_not_stop_at_its_own_rounding():
    assert after(WATCHFUL, [2.0] * 8).judge(2.0 + 1e-6, 1.0) is None


def test_so_many_in_a_row_are_enough_and_a_good_one_begins_anew():
    guard = Guard(WATCHFUL)
    for loss in (math.nan, math.nan, 2.0, math.nan, math.nan):
        guard.judge(loss, 1.0)
        assert not guard.is_exhausted
    guard.judge(math.nan, 1.0)
    assert guard.is_exhausted and guard.skipped == 5


def test_its_state_goes_through_json_and_decides_alike():
    guard = after(WATCHFUL, [2.0 + i / 10 for i in range(8)])
    guard.judge(math.nan, 1.0)
    again = Guard(WATCHFUL)
    again.restore(json.loads(json.dumps(guard.state())))
    assert again.state() == guard.state()
    assert again.judge(9.0, 1.0) == guard.judge(9.0, 1.0) is not None


def test_a_state_that_is_none_is_refused_in_words():
    with pytest.raises(CheckpointError, match=r"extra\.guard"):
        Guard(WATCHFUL).restore({"loss": 3})

from __future__ import annotations

import math

import numpy as np
import pytest

from megatron_yuan.report.expert_figures import (
    DEAD_AFTER_STEPS,
    LastVisits,
    effective_experts,
    entropy,
    max_over_mean,
    partners,
    relative_load,
)


def test_an_even_load_is_one_in_every_figure():
    assert relative_load([7, 7, 7]).tolist() == [1, 1, 1]
    assert max_over_mean([7, 7, 7]) == 1
    assert entropy([7, 7, 7]) == pytest.approx(1)


def test_a_load_on_one_expert_is_as_uneven_as_can_be():
    assert max_over_mean([0, 12, 0, 0]) == 4
    assert entropy([0, 12, 0, 0]) == 0


def test_figures_of_a_load_computed_by_hand():
    # p = 1/2, 1/4, 1/8, 1/8: 1.75 bits of 2
    assert entropy([4, 2, 1, 1]) == pytest.approx(0.875)
    assert max_over_mean([4, 2, 1, 1]) == 2
    assert relative_load([4, 2, 1, 1]).tolist() == [2, 1, 0.5, 0.5]


def test_layers_are_figured_each_by_itself():
    assert entropy([[5, 5], [9, 0]]).tolist() == pytest.approx([1, 0])
    assert max_over_mean([[5, 5], [9, 0]]).tolist() == [1, 2]


def test_a_layer_without_a_token_has_no_figures():
    assert math.isnan(max_over_mean([0, 0]))
    assert math.isnan(entropy([0, 0]))


def test_a_single_expert_is_even():
    assert entropy([9]) == 1
    assert math.isnan(entropy([0]))


def test_two_experts_used_evenly_out_of_eight_are_two_effective_ones():
    assert effective_experts(float(entropy([6, 6, 0, 0, 0, 0, 0, 0])), 8) == pytest.approx(2)


def test_partners_are_shares_of_the_row_experts_tokens():
    # 6 tokens, two experts each: 4 visit 0 and 1, 2 visit 0 and 2.
    share = partners([[6, 4, 2], [4, 4, 0], [2, 0, 2]])
    np.testing.assert_allclose(share, [[np.nan, 4 / 6, 2 / 6], [1, np.nan, 0], [1, 0, np.nan]])
    assert np.isnan(partners([[0, 0], [0, 3]])[0]).all()


def test_an_expert_is_dead_after_the_whole_window_and_not_before():
    visits = LastVisits(start_step=100)
    for step in range(101, 101 + DEAD_AFTER_STEPS):
        visits.see(step, np.array([[5, 1 if step == 101 else 0, 0]]))
        dead = visits.dead_LE.tolist()
    assert dead == [[False, False, True]]
    visits.see(101 + DEAD_AFTER_STEPS, np.array([[5, 0, 0]]))
    assert visits.dead_LE.tolist() == [[False, True, True]]
    assert [visits.idle_since(0, expert) for expert in (1, 2)] == [102, 101]

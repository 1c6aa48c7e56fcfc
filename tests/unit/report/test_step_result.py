from __future__ import annotations

import math

import pytest


def test_a_balanced_layer_has_imbalance_one_and_a_collapsed_one_the_number_of_experts(make_step):
    result = make_step(expert_load=[[5, 5, 5, 5], [20, 0, 0, 0]])
    assert result.load_imbalance == [1.0, 4.0]
    assert result.worst_imbalance == (4.0, 1)


def test_a_layer_without_tokens_is_not_the_worst(make_step):
    result = make_step(expert_load=[[0, 0], [2, 1]])
    assert math.isnan(result.load_imbalance[0])
    assert result.worst_imbalance == (pytest.approx(4 / 3), 1)


def test_loads_that_nobody_counted_stay_unknown(make_step):
    result = make_step(expert_load=None)
    assert result.load_imbalance is None
    assert result.worst_imbalance is None


def test_throughput_counts_the_tokens_computed_and_not_only_those_with_loss(make_step):
    assert make_step(tokens=100, seconds=0.5).tokens_per_second == 200
    assert make_step(tokens=100, positions=400, seconds=0.5).tokens_per_second == 800


def test_mfu_is_the_share_of_all_devices_peak(arithmetic):
    assert arithmetic.tflops(1000) == pytest.approx(1.0)  # 1000 tokens/s x 2 GFLOP over two devices
    assert arithmetic.mfu(1000) == pytest.approx(0.1)
    assert "causal attention scores" in arithmetic.convention

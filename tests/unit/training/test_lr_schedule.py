import math

import pytest

from megatron_yuan.config.schema import OptimizerConfig
from megatron_yuan.training.lr_schedule import learning_rate

COSINE = OptimizerConfig(lr=1e-4, min_lr=1e-5, lr_warmup_iters=10)


def test_the_first_step_is_not_wasted_and_warmup_ends_at_the_peak():
    assert learning_rate(1, COSINE, 100) == pytest.approx(1e-5)
    assert learning_rate(10, COSINE, 100) == pytest.approx(1e-4)


def test_cosine_is_half_way_in_the_middle_and_ends_at_min_lr():
    assert learning_rate(55, COSINE, 100) == pytest.approx((1e-4 + 1e-5) / 2)
    assert learning_rate(100, COSINE, 100) == pytest.approx(1e-5)
    assert learning_rate(500, COSINE, 100) == pytest.approx(1e-5)


def test_cosine_follows_its_formula_at_every_step():
    for step in range(11, 101):
        expected = 1e-5 + 9e-5 * (1 + math.cos(math.pi * (step - 10) / 90)) / 2
        assert learning_rate(step, COSINE, 100) == pytest.approx(expected)


def test_the_decay_may_end_before_the_run():
    config = OptimizerConfig(lr=1.0, min_lr=0.1, lr_decay_iters=50)
    assert learning_rate(50, config, 100) == pytest.approx(0.1)
    assert learning_rate(80, config, 100) == pytest.approx(0.1)


def test_constant_stays_at_the_peak_after_warmup():
    config = OptimizerConfig(lr=8e-5, min_lr=8e-5, lr_decay_style="constant", lr_warmup_iters=2)
    assert [learning_rate(step, config, 9) for step in (1, 2, 3, 9)] == pytest.approx([4e-5, 8e-5, 8e-5, 8e-5])


def test_wsd_is_stable_until_its_last_part_and_then_falls_linearly():
    config = OptimizerConfig(lr=1.0, min_lr=0.0, lr_decay_style="WSD", lr_wsd_decay_iters=20)
    assert learning_rate(80, config, 100) == pytest.approx(1.0)
    assert learning_rate(90, config, 100) == pytest.approx(0.5)
    assert learning_rate(100, config, 100) == pytest.approx(0.0)

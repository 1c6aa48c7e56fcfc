from __future__ import annotations

import math

import pytest

from megatron_yuan.report.console import ConsoleReport, duration, number, step_line
from megatron_yuan.report.peak import Peak
from megatron_yuan.report.result import EvalResult
from megatron_yuan.report.throughput import Arithmetic


def test_a_line_says_everything_that_matters(make_step, arithmetic):
    line = step_line(make_step(7), 100, arithmetic, 2000.0, "00:00:46")
    for part in ("step   7/100", "loss  2.5000", "grad  0.500", "lr 1.00e-04", "2000 tok/s", "  2.00 TFLOP/s"):
        assert part in line
    for part in ("MFU(+attn) 20.0%", "load  3.00 L0", "|   1.0 GiB", "ETA 00:00:46"):
        assert part in line


def test_lines_are_aligned_and_fit_160_characters(make_step):
    arithmetic = Arithmetic(2.4e10, Peak(9.9e14, "datasheet"), 1024)
    small = step_line(make_step(1, loss=0.01), 1_000_000, arithmetic, 512.0, "00:00:46")
    large = make_step(999_999, loss=12.3, grad_norm=1234.5, memory_bytes=140 * 2**30, expert_load=[[99, 1]] * 24)
    line = step_line(large, 1_000_000, arithmetic, 9_876_543.0, duration(1e6))
    assert len(line) <= 160
    assert [i for i, c in enumerate(small) if c == "|"][:7] == [i for i, c in enumerate(line) if c == "|"][:7]


def test_the_label_of_mfu_says_whether_scores_are_in(make_step):
    without = Arithmetic(2e9, Peak(1e13, "x"), scores_counted=False)
    assert "MFU(-attn) " in step_line(make_step(), 1, without, 1.0, "")
    assert "without attention scores" in without.convention


@pytest.mark.parametrize("value", [0.0, 1.5, 99.99999, 1234.5678, 1e5, 1e6, 1e12, -3.25, math.nan, math.inf])
def test_numbers_keep_their_width(value):
    assert len(number(value, 7, 4)) == 7
    assert len(number(value, 6, 3)) == 6


def test_durations_have_days_only_where_there_are_any():
    assert duration(46.2) == "00:00:46"
    assert duration(2 * 86400 + 3 * 3600 + 62) == "   2d 03h"


def test_lines_come_at_the_interval_and_at_the_end_with_the_speed_since_the_last(said, make_step, arithmetic):
    report = ConsoleReport(arithmetic, total_steps=5, interval=2)
    said()
    for step in range(1, 6):
        report.step(make_step(step, seconds=0.5 if step % 2 else 1.5))
    report.close()
    lines = said().splitlines()
    assert [line.split(" |")[0] for line in lines] == ["step 2/5", "step 4/5", "step 5/5"]
    assert all("1000 tok/s" in line for line in lines[:2])
    assert "2000 tok/s" in lines[2]


def test_the_eta_does_not_fall_for_one_slow_step(said, make_step, arithmetic):
    report = ConsoleReport(arithmetic, total_steps=104)
    for step, seconds in enumerate((60.0, 1.0, 1.0, 1.0), start=1):
        report.step(make_step(step, seconds=seconds))
    assert "ETA 00:01:40" in said().splitlines()[-1]


def test_a_validation_is_one_line_for_all_sets(said, arithmetic):
    report = ConsoleReport(arithmetic, total_steps=10)
    said()
    report.evaluation(EvalResult(5, {"zh": 3.5, "en": 2.25}, 4096))
    assert said() == "step  5/10 | validation loss | zh  3.5000 | en  2.2500 | 4,096 tokens\n"


def test_a_step_that_was_left_out_has_no_line_of_figures(said, make_step, arithmetic):
    report = ConsoleReport(arithmetic, total_steps=10)
    said()
    report.step(make_step(1, loss=math.nan, tokens=0, positions=None, skipped="iterations-to-skip"))
    assert said() == ""
    report.step(make_step(2))
    assert said().startswith("step  2/10")

from __future__ import annotations

import itertools
import random

import pytest

from megatron_yuan.config.fields import with_values
from megatron_yuan.config.load import parse
from megatron_yuan.config.presets import PRESETS
from megatron_yuan.errors import ConfigError
from megatron_yuan.planning.balance import balanced_sizes, slowest_share, stage_seconds
from megatron_yuan.planning.costs import Costs, PassSeconds, costs_on
from megatron_yuan.planning.dry_run import dry_run_report
from megatron_yuan.planning.machine import read_machine


def costs_of(embedding: float, head: float) -> Costs:
    return Costs(
        layer=PassSeconds(0.4, 0.6), embedding=PassSeconds(0, embedding), head=PassSeconds(head, 0),
        zero=0, norm=0, optimizer=0, message_latency=0, message=0, reduce_latency=0, reduce=0, tied=0, cores=None,
        source="made up",
    )  # fmt: skip


def test_equal_stages_stay_equal() -> None:
    assert balanced_sizes(24, 8, 1, costs_of(0, 0)) == [3] * 8
    assert balanced_sizes(24, 4, 2, costs_of(0, 0)) == [3] * 8


def test_a_head_as_dear_as_two_layers_takes_two_layers_off_its_stage() -> None:
    assert balanced_sizes(14, 4, 1, costs_of(0, 2)) == [4, 4, 4, 2]
    assert slowest_share(stage_seconds([4, 4, 4, 2], 4, costs_of(0, 2))) == pytest.approx(1 / 4)


def test_no_split_has_a_faster_slowest_stage() -> None:
    draw = random.Random(5)
    for _ in range(40):
        stages, layers = draw.randint(2, 4), draw.randint(4, 9)
        costs = costs_of(draw.random(), 4 * draw.random())
        splits = (s for s in itertools.product(range(1, layers + 1), repeat=stages) if sum(s) == layers)
        best = min(max(stage_seconds(split, stages, costs)) for split in splits)
        assert max(stage_seconds(balanced_sizes(layers, stages, 1, costs), stages, costs)) == pytest.approx(best)


def test_the_chunks_of_a_stage_differ_by_a_layer_at_most() -> None:
    sizes = balanced_sizes(26, 4, 3, costs_of(0.5, 3.0))
    assert sum(sizes) == 26 and min(sizes) >= 1
    assert all(max(sizes[s::4]) - min(sizes[s::4]) <= 1 for s in range(4))


def test_m32s_head_counts_as_one_to_two_layers_of_its_last_stage() -> None:
    m32 = PRESETS["yuan2-m32"]
    costs = costs_on(read_machine("h200-141gb"), m32, 1)
    sizes = balanced_sizes(24, 8, 1, costs)
    assert sizes[-1] == 2 and sum(sizes) == 24
    even, auto = (slowest_share(stage_seconds(each, 8, costs)) for each in ([3] * 8, sizes))
    assert auto < even


def test_auto_too_needs_a_layer_for_each_stage() -> None:
    with pytest.raises(ConfigError, match="use fewer stages"):
        parse(["--preset", "tiny", "--pipeline-model-parallel-layout", "auto", "--pipeline-model-parallel-size", "5"])


def test_a_dry_run_shows_what_auto_comes_to() -> None:
    config = with_values(PRESETS["yuan2-m32"], {"pipeline_model_parallel_layout": "auto"})
    report = dry_run_report(config, "yuan2-m32")
    assert "stage 7: 2 layers (22-23), final norm and head" in report
    assert "the run measures its own" in report

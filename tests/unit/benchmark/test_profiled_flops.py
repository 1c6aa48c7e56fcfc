from __future__ import annotations

import pytest

from megatron_yuan.benchmark.profiled_flops import profiled_flops
from megatron_yuan.config.presets import preset
from megatron_yuan.planning.accounting import forward_flops

pytest.importorskip("deepspeed", reason="needs the extra 'deepspeed'")


def test_deepspeeds_profiler_counts_what_the_formula_says_within_a_hundredth() -> None:
    tiny = preset("tiny")
    formula = forward_flops(tiny.model, tiny.data.seq_length).dense
    assert profiled_flops(tiny) == pytest.approx(formula, rel=0.01)

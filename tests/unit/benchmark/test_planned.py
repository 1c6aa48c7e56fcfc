"""The planner's memory, held against real processes. Times are for a quiet machine: tools/benchmark.py --part plan."""

from __future__ import annotations

from typing import Any

import pytest

from megatron_yuan.benchmark.planned import measured_peak
from megatron_yuan.benchmark.processes import run_processes
from megatron_yuan.config.fields import with_values
from megatron_yuan.config.schema import Config
from megatron_yuan.model import loss
from megatron_yuan.planning import cpu_memory
from megatron_yuan.planning.memory import plan_memory

SMALL = with_values(
    Config(),
    {
        "num_layers": 4, "hidden_size": 128, "num_attention_heads": 4, "kv_channels": 64, "ffn_hidden_size": 384,
        "num_experts": 8, "vocab_size": 8192, "seq_length": 256, "global_batch_size": 4, "device": "cpu",
    },
)  # fmt: skip


@pytest.mark.parametrize(
    ("world", "values"),
    [
        (1, {"bf16": False, "recompute_granularity": "full", "recompute_num_layers": 2}),
        (1, {"recompute_granularity": "full", "vocab_size": 512, "num_experts": 32}),
        (1, {"recompute_granularity": "selective", "ffn_hidden_size": 1024}),
        (2, {"pipeline_model_parallel_size": 2, "recompute_granularity": "selective", "bf16": False}),
        (2, {"pipeline_model_parallel_size": 2, "micro_batch_size": 2}),
        (2, {"pipeline_model_parallel_size": 2, "virtual_pipeline_model_parallel_size": 2}),
    ],
)
def test_predicted_memory_is_that_of_live_tensors(world: int, values: dict[str, Any]) -> None:
    config = with_values(SMALL, values)
    plan = plan_memory(config)
    for stage, peak in run_processes(measured_peak, world, config):
        assert -0.02 <= plan[stage].total / peak - 1 <= 0.05


@pytest.mark.parametrize("virtual", [1, 2])
def test_a_microbatch_is_freed_in_time_so_that_memory_does_not_grow_with_their_number(virtual: int) -> None:
    layout = {"pipeline_model_parallel_size": 2, "virtual_pipeline_model_parallel_size": virtual, "vocab_size": 512}
    few, many = (
        run_processes(measured_peak, 2, with_values(SMALL, {**layout, "global_batch_size": n})) for n in (4, 16)
    )
    for (stage, peak), (_, later) in zip(few, many, strict=True):
        kept_by_one = plan_memory(with_values(SMALL, layout))[stage].activations / (2 * virtual)
        assert later - peak < 0.1 * kept_by_one  # 12 microbatches more


def test_the_cpus_loss_chunks_are_the_models() -> None:
    assert loss.CHUNK_TOKENS["cpu"] == cpu_memory.LOSS_CHUNK_TOKENS
    assert cpu_memory.LOSS_PIECE_ELEMENTS == loss.CACHED_ELEMENTS

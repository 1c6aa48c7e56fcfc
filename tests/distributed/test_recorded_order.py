"""The order of passes that the planner simulates is the one in which real stages compute."""

from __future__ import annotations

from typing import Any, cast

import pytest

from megatron_yuan.config.fields import with_values
from megatron_yuan.config.presets import preset
from megatron_yuan.config.schema import Config
from megatron_yuan.model.model import YuanModel
from megatron_yuan.planning.order import order_of
from tests.processes import run_processes

MICROBATCHES = 6


def recorded(config: Config) -> list[tuple[bool, int]]:
    """Whether forward, and the chunk, of each pass of a step on this rank."""
    import torch

    from megatron_yuan.data.batch import make_batch
    from megatron_yuan.parallel import topology as processes
    from megatron_yuan.training.setup import build_training_model
    from megatron_yuan.training.step import run_batch

    topology = processes.start(config)
    try:
        model = build_training_model(config, topology)
        passes: list[tuple[bool, int]] = []
        for i, chunk in enumerate(model.chunks):
            layer: Any = next(iter(cast(YuanModel, chunk.module.part).layers.values()))
            layer.register_forward_pre_hook(lambda *_, i=i: passes.append((True, i)))
            layer.attention.register_full_backward_pre_hook(lambda *_, i=i: passes.append((False, i)))
        tokens = torch.arange(config.data.seq_length + 1).view(1, -1)
        batches = [make_batch(tokens, [n], eod_id=-1) for n in range(MICROBATCHES)]
        run_batch(model.chunks, iter(batches), MICROBATCHES, config, topology, 1)
        return passes
    finally:
        processes.stop()


@pytest.mark.parametrize(("stages", "virtual"), [(2, 1), (2, 2), (3, 1), (3, 2)])
def test_stages_compute_in_the_simulated_order(stages: int, virtual: int) -> None:
    values = {
        "num_layers": stages * virtual, "seq_length": 64, "global_batch_size": MICROBATCHES, "micro_batch_size": 1,
        "pipeline_model_parallel_size": stages, "virtual_pipeline_model_parallel_size": virtual,
        "reset_attention_mask": False,
    }  # fmt: skip
    by_rank = run_processes(recorded, stages, with_values(preset("tiny"), values))
    for stage, passes in enumerate(by_rank):
        order = order_of(stage, stages, virtual, MICROBATCHES)
        assert passes == [(work.forward, work.chunk) for work in order.passes]

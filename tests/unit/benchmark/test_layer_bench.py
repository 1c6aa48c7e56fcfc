"""What the layer's benchmark times is what it says it is."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from megatron_yuan.benchmark import expert_attention, reports
from megatron_yuan.benchmark.moe import flops_by_extent, layer_bench
from megatron_yuan.config.presets import preset
from megatron_yuan.errors import ConfigError

TINY = preset("tiny")
CONFIG = replace(
    TINY,
    model=replace(TINY.model, hidden_size=32, ffn_hidden_size=16, num_experts=4, moe_router="softmax"),
    data=replace(TINY.data, seq_length=8),
    training=replace(TINY.training, micro_batch_size=2),
)
CPU = torch.device("cpu")


def test_forced_routing_gives_every_expert_equally_many_tokens_and_real_routing_does_not() -> None:
    assert layer_bench(CONFIG, torch.float32, CPU, forced=True).imbalance == 1.0
    assert layer_bench(CONFIG, torch.float32, CPU, forced=False).imbalance > 1.0


def test_its_parts_are_those_of_the_layer_and_each_runs_backward() -> None:
    bench = layer_bench(CONFIG, torch.float32, CPU, forced=False)
    for action in bench.parts().values():
        action()
    after_parts = bench.layer.experts.down.main_grad.clone()  # type: ignore[attr-defined]
    bench.forward_backward()
    # The experts' gradient by the layer's is that of the part by itself: the same rows, weights and upstream.
    torch.testing.assert_close(bench.layer.experts.down.main_grad, 2 * after_parts)  # type: ignore[attr-defined]


def test_flops_are_those_of_what_is_timed() -> None:
    """The layer's with router and shared experts, the experts' of the chosen ones alone; backward counts twice."""
    routed, router, shared = 2 * 3 * 32 * 16 * 2, 2 * 4 * 32, 2 * 3 * 32 * 16 * 3
    with_shared = replace(CONFIG.model, num_shared_experts=3)
    assert flops_by_extent(CONFIG.model, 16) == {"experts": 48 * routed, "layer": 48 * (routed + router)}
    assert flops_by_extent(with_shared, 16) == {"experts": 48 * routed, "layer": 48 * (routed + router + shared)}


def test_forced_routing_is_even_where_experts_choose_and_shared_experts_are_a_part() -> None:
    model = replace(CONFIG.model, moe_router="expert-choice", num_shared_experts=1)
    bench = layer_bench(replace(CONFIG, model=model), torch.float32, CPU, forced=True)
    assert bench.imbalance == 1.0
    parts = bench.parts()
    assert list(parts) == ["route", "dispatch", "experts", "combine", "shared experts"]
    for action in parts.values():
        action()


def test_the_attention_router_keeps_a_fifth_or_less_of_what_the_formula_does() -> None:
    costs = expert_attention.measure(64, 32, CPU, rounds=1)
    assert costs["naive"].saved_bytes >= 64 * 32 * 32 * 4
    assert 5 * costs["fused"].saved_bytes <= costs["naive"].saved_bytes


def test_the_attention_routers_benchmark_takes_no_other_router() -> None:
    with pytest.raises(ConfigError, match="moe-router is softmax"):
        reports.router(CONFIG, 1, False)

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from megatron_yuan.config.presets import PRESETS
from megatron_yuan.config.schema import ModelConfig
from megatron_yuan.model.context import token_context
from megatron_yuan.model.model import YuanModel
from megatron_yuan.planning.accounting import count_parameters, forward_flops

M32 = PRESETS["yuan2-m32"].model


def test_m32_has_its_published_parameters() -> None:
    parameters = count_parameters(M32)
    assert parameters.layer.total == 1_652_761_600
    assert parameters.layer.filter == 8_393_728
    assert parameters.total == 39_942_842_368
    assert parameters.active == 3_704_055_808


def test_untied_embeddings_count_twice() -> None:
    assert count_parameters(ModelConfig(untie_embeddings_and_output_weights=True)).total == 40_219_404_288


@pytest.mark.parametrize(("router", "millions"), [("attention", 825.92), ("softmax", 825.77)])
def test_the_ablation_has_the_size_of_the_papers(router: str, millions: float) -> None:
    parameters = count_parameters(replace(PRESETS["ablation"].model, moe_router=router))
    assert parameters.total / 1e6 == pytest.approx(millions, abs=0.01)


@pytest.mark.parametrize("name", ["tiny", "bench-cpu", "ablation"])
def test_the_count_is_that_of_the_built_model(name: str) -> None:
    with torch.device("meta"):
        model = YuanModel(PRESETS[name].model)
    assert count_parameters(PRESETS[name].model).total == sum(p.numel() for p in model.parameters())


def test_m32_costs_seven_point_four_gigaflop_a_token() -> None:
    flops = forward_flops(M32, 4096)
    assert flops.matrices / 1e9 == pytest.approx(7.408, abs=0.001)
    # Two for each active parameter, but for the vectors: norms and biases.
    vectors = 24 * (3 * 2048 + 3072) + 2048
    assert flops.matrices == 2 * (count_parameters(M32).active - vectors)
    assert flops.scores_dense / 1e9 == pytest.approx(1.61, abs=0.01)
    assert flops.scores_causal / 1e9 == pytest.approx(0.805, abs=0.001)


def test_the_flops_are_those_of_the_matrix_products_run() -> None:
    config = ModelConfig(
        num_layers=2, hidden_size=32, num_attention_heads=2, kv_channels=16, ffn_hidden_size=48, vocab_size=128,
        num_experts=4, moe_experts="looped",
    )  # fmt: skip
    model = YuanModel(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    S = 16
    positions = torch.arange(S).unsqueeze(0)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        hidden = model(positions, token_context(config, positions, torch.float32)).hidden_BSH
        model.logits(hidden)
    counts = {str(op): flops for op, flops in counter.get_flop_counts()["Global"].items()}
    assert counts.pop("aten.bmm") == 2 * S * 2 * 4 * 4  # the experts' own attention, E x E a token: left out as small
    scores = sum(counts.pop(op) for op in list(counts) if "attention" in op)  # torch counts them dense, or not at all
    flops = forward_flops(config, S)
    counting = 2 * S * 2 * 4 * 4  # which experts were visited together, for the reports
    assert sum(counts.values()) == S * flops.matrices + counting
    assert scores in (0, S * flops.scores_dense)

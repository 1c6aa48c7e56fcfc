from __future__ import annotations

from typing import Any

import pytest
import torch

from megatron_yuan.config.fields import with_values
from megatron_yuan.config.presets import PRESETS
from megatron_yuan.config.schema import Config
from megatron_yuan.model import loss
from megatron_yuan.model.context import token_context
from megatron_yuan.model.layer import YuanLayer
from megatron_yuan.planning import memory
from megatron_yuan.planning.memory import layer_activation_bytes, plan_memory

M32 = PRESETS["yuan2-m32"]
SMALL = with_values(
    Config(),
    {
        "num_layers": 4,
        "hidden_size": 256,
        "num_attention_heads": 4,
        "kv_channels": 128,
        "ffn_hidden_size": 512,
        "num_experts": 16,
        "vocab_size": 128,
        "seq_length": 256,
        "bf16": False,
    },
)


def changed(config: Config, **values: Any) -> Config:
    return with_values(config, values)


def test_m32_stages_have_their_published_state() -> None:
    stages = plan_memory(M32)
    assert [round(stage.state / 1e9, 1) for stage in stages] == [94.2, *[89.2] * 6, 94.2]
    middle = stages[3]
    assert middle.parameters == 3 * 1_652_761_600
    assert (middle.weights, middle.gradients, middle.optimizer) == tuple(middle.parameters * n for n in (2, 4, 12))


def test_a_tied_embedding_is_held_twice_on_two_stages_and_once_on_one() -> None:
    whole = plan_memory(SMALL)[0].parameters
    halves = plan_memory(changed(SMALL, pipeline_model_parallel_size=2))
    assert sum(stage.parameters for stage in halves) == whole + 128 * 256
    untied = changed(SMALL, untie_embeddings_and_output_weights=True)
    split = plan_memory(changed(untied, pipeline_model_parallel_size=2))
    assert sum(stage.parameters for stage in split) == plan_memory(untied)[0].parameters == whole + 128 * 256


def test_float32_needs_sixteen_bytes_a_parameter() -> None:
    stage = plan_memory(SMALL)[0]
    assert stage.state == 16 * stage.parameters


def test_earlier_stages_keep_more_microbatches() -> None:
    deep = changed(SMALL, pipeline_model_parallel_size=4, global_batch_size=8)
    assert [stage.in_flight for stage in plan_memory(deep)] == [4, 3, 2, 1]
    assert [stage.in_flight for stage in plan_memory(changed(deep, global_batch_size=2))] == [2, 2, 2, 1]
    virtual = changed(deep, pipeline_model_parallel_size=2, virtual_pipeline_model_parallel_size=2)
    assert [stage.in_flight for stage in plan_memory(virtual)] == [5, 3]


@pytest.mark.parametrize("values", [{}, {"moe_router": "softmax"}, {"moe_router_topk": 3}, {"num_shared_experts": 2}])
@pytest.mark.parametrize("granularity", ["none", "selective"])
def test_activations_are_what_a_layer_keeps_for_backward(values: dict[str, Any], granularity: str) -> None:
    config = changed(SMALL, **values, recompute_granularity=granularity)
    kept = measured_bytes_per_token(config)
    # On a CPU each of the three norms keeps its normalised input too; the rotary tables are shared by all layers.
    kept -= 3 * config.model.hidden_size * 4 + 2 * config.model.rotary_dim * 4
    assert layer_activation_bytes(config) == pytest.approx(kept, rel=0.02)


def measured_bytes_per_token(config: Config) -> float:
    layer = YuanLayer(config.model, 0)
    for experts in (layer.moe.experts, layer.moe.shared_experts):
        if experts is not None:
            experts.keep_h = config.parallel.recompute_granularity == "none"
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    weights = {parameter.untyped_storage().data_ptr() for parameter in layer.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    B, S = 2, config.data.seq_length
    context = token_context(config.model, torch.arange(S).expand(B, S), torch.float32, sample_keys=[1, 2])
    x_BSH = torch.randn(B, S, config.model.hidden_size, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        layer(x_BSH, context)
    return sum(t.untyped_storage().nbytes() for place, t in kept.items() if place not in weights) / (B * S)


def test_recomputation_keeps_the_inputs_of_the_first_layers_of_each_chunk() -> None:
    tokens, H = 256, 256
    none, full = plan_memory(SMALL)[0], plan_memory(changed(SMALL, recompute_granularity="full"))[0]
    one = plan_memory(changed(SMALL, recompute_granularity="full", recompute_num_layers=1))[0]
    layer = layer_activation_bytes(SMALL) * tokens
    assert none.activations - full.activations == 4 * (layer - H * 4 * tokens)
    assert none.activations - one.activations == layer - H * 4 * tokens
    assert full.working - none.working == layer


def test_the_loss_chunk_is_the_models() -> None:
    assert loss.CHUNK_TOKENS["cuda"] == memory.LOSS_CHUNK_TOKENS

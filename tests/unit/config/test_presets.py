from __future__ import annotations

import pytest

from megatron_yuan.config.presets import PRESETS
from megatron_yuan.config.validate import validate


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_obeys_the_rules(name: str) -> None:
    validate(PRESETS[name])


def test_the_m32_preset_sees_the_published_two_trillion_tokens() -> None:
    config = PRESETS["yuan2-m32"]
    tokens = config.training.train_iters * (config.training.global_batch_size or 0) * config.data.seq_length
    assert tokens == 2_000_683_008_000
    assert config.model.padded_vocab_size == 135_040
    assert config.model.attention_size == 4096 and config.model.rotary_dim == 128


def test_the_cpu_benchmark_has_the_shape_of_its_comparison() -> None:
    model = PRESETS["bench-cpu"].model
    assert (model.num_layers, model.hidden_size, model.num_attention_heads, model.head_dim) == (4, 512, 4, 256)
    assert (model.num_experts, model.moe_router_topk, model.ffn_hidden_size) == (32, 2, 1024)
    assert model.padded_vocab_size == 32_000 and model.untie_embeddings_and_output_weights

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from megatron_yuan.config.schema import ModelConfig
from megatron_yuan.model.initialize import initialize
from megatron_yuan.model.model import YuanModel

CONFIG = ModelConfig(
    num_layers=3,
    hidden_size=64,
    num_attention_heads=2,
    kv_channels=32,
    ffn_hidden_size=64,
    vocab_size=128,
    num_experts=4,
)


def drawn(config: ModelConfig = CONFIG, seed: int = 1, **part: object) -> dict[str, torch.Tensor]:
    model = YuanModel(config, **part)  # type: ignore[arg-type]
    initialize(model, config, seed)
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def test_a_part_draws_what_the_whole_draws() -> None:
    whole = drawn()
    parts = [drawn(layers=[0], is_last=False), drawn(layers=[1, 2], is_first=False)]
    assert set().union(*parts) == whole.keys()
    for part in parts:
        assert all(torch.equal(tensor, whole[name]) for name, tensor in part.items())


def test_the_seed_and_the_name_decide() -> None:
    one, other = drawn(seed=1), drawn(seed=2)
    name = "layers.0.attention.value.weight"
    assert torch.equal(one[name], drawn(seed=1)[name]) and not torch.equal(one[name], other[name])
    assert not torch.equal(one[name], one["layers.1.attention.value.weight"])


@pytest.mark.parametrize("untied", [False, True])
def test_sizes_are_the_published_ones(untied: bool) -> None:
    weights = drawn(dataclasses.replace(CONFIG, untie_embeddings_and_output_weights=untied))
    assert ("head.weight" in weights) == untied
    for name, tensor in weights.items():
        if name.endswith("norm.weight"):
            assert (tensor == 1).all(), name
        elif ".filter.conv" in name:
            bound = 1 / math.sqrt(2 * (64 if ".conv1." in name else 32))  # torch's Conv2d: 1 / sqrt(fan in)
            assert 0.8 * bound < tensor.abs().max() <= bound, name
        else:
            residual = name.endswith(("attention.output.weight", "experts.down"))
            std = 0.02 / math.sqrt(6) if residual else 0.02
            assert abs(tensor.std().item() / std - 1) < 0.1 and abs(tensor.mean().item()) < 0.1 * std, name

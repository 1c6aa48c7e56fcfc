"""Initial weights as published: each drawn from its own global name, so one seed gives one model at any layout.

N(0, std) for matrices, N(0, std / sqrt(2 L)) for the projections back into the residual stream, torch's default for the
filter's convolutions (uniform within 1 / sqrt(fan-in)), ones for norms (facts: published arguments.py and Conv2d's
default). Zeros for expert biases, and for a noisy top-k router (Shazeer et al. 2017, appendix A).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from megatron_yuan.config.schema import ModelConfig
from megatron_yuan.model.randomness import generator

RESIDUAL_PROJECTIONS = ("attention.output.weight", "moe.experts.down", "moe.shared_experts.down")


@torch.no_grad()
def initialize(model: nn.Module, config: ModelConfig, seed: int) -> None:
    """Fill every parameter in place, drawing in float32 on the CPU whatever the parameter's dtype and device."""
    for name, parameter in model.named_parameters():
        parameter.copy_(_draw(name, parameter.shape, config, seed))


def _draw(name: str, shape: torch.Size, config: ModelConfig, seed: int) -> Tensor:
    values = torch.empty(shape)
    random = generator(torch.device("cpu"), seed, name)
    if name.endswith("norm.weight"):
        return values.fill_(1.0)
    if name.endswith("expert_bias") or (name.endswith("router.weight") and config.moe_router == "noisy-top-k"):
        return values.zero_()
    if ".filter.conv" in name:
        in_size = config.hidden_size if ".conv1." in name else config.hidden_size // 2
        bound = 1 / math.sqrt(2 * in_size)
        return values.uniform_(-bound, bound, generator=random)
    std = config.init_method_std
    if name.endswith(RESIDUAL_PROJECTIONS):
        std /= math.sqrt(2 * config.num_layers)
    return values.normal_(0.0, std, generator=random)

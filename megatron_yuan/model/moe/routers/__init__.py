"""Routers by name, as `--moe-router` spells them."""

from __future__ import annotations

from megatron_yuan.config.schema import ModelConfig
from megatron_yuan.model.moe.routers.attention import AttentionRouter
from megatron_yuan.model.moe.routers.base import Router, Routing
from megatron_yuan.model.moe.routers.expert_choice import ExpertChoiceRouter
from megatron_yuan.model.moe.routers.noisy_topk import NoisyTopKRouter
from megatron_yuan.model.moe.routers.softmax import SoftmaxRouter

ROUTERS: dict[str, type[Router]] = {
    "attention": AttentionRouter,
    "softmax": SoftmaxRouter,
    "noisy-top-k": NoisyTopKRouter,
    "expert-choice": ExpertChoiceRouter,
}

__all__ = ["ROUTERS", "Router", "Routing", "build_router"]


def build_router(config: ModelConfig, layer: int) -> Router:
    """The router that `config.moe_router` names."""
    return ROUTERS[config.moe_router](config, layer)

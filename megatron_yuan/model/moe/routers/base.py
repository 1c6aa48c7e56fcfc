"""The template of every router: hidden states -> expert scores -> the chosen experts and their weights.

Shapes: T tokens, H hidden, E experts, K chosen. A new router overrides `logits`; one whose choice differs, `choose`
too.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from megatron_yuan.config.schema import ModelConfig


class Routing(NamedTuple):
    """Which experts each token visits, and with what weight."""

    experts_TK: Tensor
    """Expert ids, int64."""
    weights_TK: Tensor
    """Weights in float32, summing to 1 for each token."""
    logits_TE: Tensor
    """The scores they came from, float32."""


class Router(nn.Module):
    """Scores experts in float32 and takes the top k."""

    rows_per_expert = 1  # rows of the weight for each expert

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.num_experts, self.topk = config.num_experts, config.moe_router_topk
        self.weight = nn.Parameter(torch.empty(self.rows_per_expert * self.num_experts, config.hidden_size))

    def forward(self, x_TH: Tensor) -> Routing:
        """Route `x` [T, H]."""
        logits_TE = self.logits(x_TH)
        return self.choose(logits_TE)

    def logits(self, x_TH: Tensor) -> Tensor:
        """Scores [T, E] in float32."""
        raise NotImplementedError

    def choose(self, logits_TE: Tensor) -> Routing:
        """Top k of the softmax over all experts, renormalised: the published choice.

        In exact arithmetic this is softmax over the top-k logits; the order matters where a saturated softmax makes
        ties.
        """
        probabilities_TE = logits_TE.softmax(dim=-1)
        weights_TK, experts_TK = probabilities_TE.topk(self.topk, dim=-1)
        return Routing(experts_TK, weights_TK / weights_TK.sum(dim=-1, keepdim=True), logits_TE)

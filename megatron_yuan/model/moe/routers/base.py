"""The template of every router: hidden states -> expert scores -> the chosen experts and their weights.

Shapes: B batch, S sequence, T = B x S tokens, H hidden, E experts, K choices of a token.

A new router overrides `logits`; one whose choice differs, `choose` too; one with a loss of its own, `route`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from megatron_yuan.config.schema import ModelConfig


class Routing(NamedTuple):
    """Which experts each token visits, and with what weight."""

    experts_TK: Tensor
    """Expert ids, int64; -1 is no expert."""
    weights_TK: Tensor
    """Weights in float32: of a token that chooses its experts, summing to 1; 0 where there is no expert."""
    logits_TE: Tensor
    """The scores they came from, float32."""
    rows: int | None = None
    """How many of the T x K pairs name an expert; None: all."""
    loss: Tensor | None = None
    """The router's own balance loss, a mean over tokens; None: it has none, or this is not training."""


class Router(nn.Module):
    """Scores experts in float32 and takes the top k."""

    rows_per_expert = 1  # rows of the weight for each expert

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer = config, layer
        self.num_experts, self.topk = config.num_experts, config.moe_router_topk
        self.weight = nn.Parameter(torch.empty(self.rows_per_expert * self.num_experts, config.hidden_size))
        self.expert_bias: nn.Parameter | None = None
        if config.moe_router_enable_expert_bias:
            # A parameter, so that checkpoints hold it, but no gradient's: balance.py moves it.
            bias_E = torch.zeros(self.num_experts, dtype=torch.float32)
            self.expert_bias = nn.Parameter(bias_E, requires_grad=False)

    def _apply(self, fn, recurse: bool = True):
        # The bias moves in steps that bfloat16 cannot hold, so it stays float32 whatever the model becomes.
        super()._apply(fn, recurse)
        if self.expert_bias is not None:
            self.expert_bias.data = self.expert_bias.data.float()
        return self

    def forward(self, x_TH: Tensor, sample_keys: Sequence[int] | None = None) -> Routing:
        """Route `x` [T, H]; `sample_keys`: a random key for each of the B samples in training, else None."""
        return self.route(x_TH, sample_keys)

    def route(self, x_TH: Tensor, sample_keys: Sequence[int] | None) -> Routing:
        """Score, then choose."""
        return self.choose(self.logits(x_TH))

    def logits(self, x_TH: Tensor) -> Tensor:
        """Scores [T, E] in float32."""
        raise NotImplementedError

    def choose(self, logits_TE: Tensor) -> Routing:
        """Top k of the softmax over all experts, renormalised: the published choice.

        In exact arithmetic this is softmax over the top-k logits; the order matters where a saturated softmax makes
        ties. An expert bias counts in the choice alone, not in the weights (Wang et al. 2024, arXiv 2408.15664).
        """
        probabilities_TE = logits_TE.softmax(dim=-1)
        if self.expert_bias is None:
            weights_TK, experts_TK = probabilities_TE.topk(self.topk, dim=-1)
        else:
            experts_TK = (probabilities_TE + self.expert_bias).topk(self.topk, dim=-1).indices
            weights_TK = probabilities_TE.gather(1, experts_TK)
        return Routing(experts_TK, weights_TK / weights_TK.sum(dim=-1, keepdim=True), logits_TE)

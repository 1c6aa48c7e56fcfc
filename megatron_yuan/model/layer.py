"""One transformer layer, pre-norm and sequential: x += attention(norm(x)); x += experts(norm(x)).

Shapes: B batch, S sequence, H hidden.
"""

from __future__ import annotations

from torch import Tensor, nn

from megatron_yuan.config.schema import ModelConfig
from megatron_yuan.model.attention import AttentionCache, LocalizedFilteringAttention
from megatron_yuan.model.context import TokenContext
from megatron_yuan.model.moe.layer import MoELayer
from megatron_yuan.model.moe.stats import RouterStats
from megatron_yuan.model.norm import RMSNorm
from megatron_yuan.model.randomness import dropout


class YuanLayer(nn.Module):
    """Layer number `layer` of the whole model, wherever it stands."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.dropout = layer, config.hidden_dropout
        self.input_norm = RMSNorm(config.hidden_size, config.norm_epsilon)
        self.attention = LocalizedFilteringAttention(config, layer)
        self.moe_norm = RMSNorm(config.hidden_size, config.norm_epsilon)
        self.moe = MoELayer(config, layer)

    def forward(
        self, x_BSH: Tensor, context: TokenContext, cache: AttentionCache | None = None
    ) -> tuple[Tensor, RouterStats | None]:
        """The next hidden states [B, S, H], and what the routing looked like."""
        keys = context.sample_keys
        attended = self.attention(self.input_norm(x_BSH), context, cache)
        x_BSH = x_BSH + dropout(attended, self.dropout, keys, self.layer, "after attention")
        mixed, stats = self.moe(self.moe_norm(x_BSH), context)
        return x_BSH + dropout(mixed, self.dropout, keys, self.layer, "after experts"), stats

"""The mixture-of-experts layer: route -> dispatch -> experts -> combine. Dropless: every token reaches its K experts.

Shapes: B batch, S sequence, H hidden, T = B x S tokens, K chosen, R rows: pairs of a token and an expert.
"""

from __future__ import annotations

from torch import Tensor, nn

from megatron_yuan.config.schema import ModelConfig
from megatron_yuan.model.context import TokenContext
from megatron_yuan.model.moe.balance import attach, balance_loss
from megatron_yuan.model.moe.dispatch import permute, plan_dispatch, unpermute
from megatron_yuan.model.moe.experts import Experts, SharedExperts
from megatron_yuan.model.moe.routers import Routing, build_router
from megatron_yuan.model.moe.stats import RouterStats, routing_stats


class MoELayer(nn.Module):
    """Weighted sum of the chosen experts, and of the shared ones where there are any."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer = config, layer
        self.router = build_router(config, layer)
        self.experts = Experts(config.num_experts, config.ffn_hidden_size, config)
        self.shared_experts = SharedExperts(config) if config.num_shared_experts else None

    def forward(self, x_BSH: Tensor, context: TokenContext) -> tuple[Tensor, RouterStats | None]:
        """Outputs [B, S, H], and what the routing looked like where the context asks."""
        x_TH = x_BSH.flatten(0, 1)
        routing = self.router(x_TH, context.sample_keys)
        stats = routing_stats(routing) if context.counted else None
        y_TH = self.mix(x_TH, routing)
        if self.shared_experts is not None:
            y_TH = y_TH + self.shared_experts(x_TH)
        if context.balance is not None and stats is not None:
            loss = balance_loss(self.config, self.layer, routing, stats.load_E, context.balance)
            if loss is not None:
                weighted = loss * context.balance.tokens
                y_TH = attach(y_TH, weighted)
                stats = stats._replace(balance_loss=weighted.detach())
        return y_TH.view_as(x_BSH), stats

    def mix(self, x_TH: Tensor, routing: Routing) -> Tensor:
        """The chosen experts' weighted sum [T, H]: dispatch, experts, combine. A token alone needs no sorting."""
        weights_TK = routing.weights_TK.to(x_TH.dtype)
        if x_TH.shape[0] == 1 and routing.rows is None and self.experts.takes_one(x_TH):
            return self.experts.of_one(x_TH, routing.experts_TK[0].tolist(), weights_TK[0].tolist())
        dispatch = plan_dispatch(routing.experts_TK, self.router.num_experts, routing.rows)
        weights_R = weights_TK.flatten()[dispatch.pair_R]
        return unpermute(self.experts(permute(x_TH, dispatch), weights_R, dispatch.ends_E), dispatch)

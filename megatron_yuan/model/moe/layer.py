"""The mixture-of-experts layer: route -> dispatch -> experts -> combine. Dropless: every token reaches its K experts.

Shapes: B batch, S sequence, H hidden, T = B x S tokens, K chosen, E experts, R = T x K rows.
"""

from __future__ import annotations

from torch import Tensor, nn

from megatron_yuan.config.schema import ModelConfig
from megatron_yuan.model.moe.dispatch import permute, plan_dispatch, unpermute
from megatron_yuan.model.moe.experts import Experts
from megatron_yuan.model.moe.routers import build_router


class MoELayer(nn.Module):
    """Weighted sum of the chosen experts."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.router = build_router(config, layer)
        self.experts = Experts(config)

    def forward(self, x_BSH: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs [B, S, H], and the number of rows each expert got, [E] int64."""
        x_TH = x_BSH.flatten(0, 1)
        routing = self.router(x_TH)
        dispatch = plan_dispatch(routing.experts_TK, self.router.num_experts)
        weights_R = routing.weights_TK.to(x_TH.dtype).flatten()[dispatch.order_R]
        y_RH = self.experts(permute(x_TH, dispatch), weights_R, dispatch)
        return unpermute(y_RH, dispatch).view_as(x_BSH), dispatch.counts_E

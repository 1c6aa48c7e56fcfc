"""The experts: E SwiGLU networks over rows sorted by expert.

Shapes: R rows, H hidden, F ffn, E experts.

- y = W_down (silu(W_gate x) * W_up x * p): the routing weight p is folded in before the down projection, which is
  exact because experts have no biases, and spares keeping the unweighted output for backward.
- gate_up [E, 2F, H]: the gate's F rows first, then up's; down [E, H, F]. No biases.
- "grouped" is one grouped product a projection (grouped.py); "looped" is the oracle, expert by expert.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megatron_yuan.config.schema import ModelConfig
from megatron_yuan.model.moe.dispatch import Dispatch
from megatron_yuan.model.moe.grouped import grouped_linear


class Experts(nn.Module):
    """All experts of a layer, their weights stacked."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        E, F_, H = config.num_experts, config.ffn_hidden_size, config.hidden_size
        self.gate_up = nn.Parameter(torch.empty(E, 2 * F_, H))
        self.down = nn.Parameter(torch.empty(E, H, F_))
        self.looped = config.moe_experts == "looped"

    def forward(self, x_RH: Tensor, weights_R: Tensor, dispatch: Dispatch) -> Tensor:
        """Outputs [R, H] of rows sorted by expert, each times its routing weight."""
        if self.looped:
            return self._forward_looped(x_RH, weights_R, dispatch)
        h_R2F = grouped_linear(x_RH, self.gate_up, dispatch)
        return grouped_linear(swiglu(h_R2F, weights_R), self.down, dispatch)

    def _forward_looped(self, x_RH: Tensor, weights_R: Tensor, dispatch: Dispatch) -> Tensor:
        counts = dispatch.counts_E.tolist()
        parts = []
        for e, (x, w) in enumerate(zip(x_RH.split(counts), weights_R.split(counts), strict=True)):
            parts.append(F.linear(swiglu(F.linear(x, self.gate_up[e]), w), self.down[e]))
        return torch.cat(parts)


def swiglu(h_R2F: Tensor, weights_R: Tensor) -> Tensor:
    """silu(gate) * up * weight, [R, 2F] -> [R, F]."""
    gate, up = h_R2F.chunk(2, dim=-1)
    return F.silu(gate) * up * weights_R.unsqueeze(-1)

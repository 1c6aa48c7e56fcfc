"""The experts: E SwiGLU networks over rows sorted by expert.

Shapes: R rows, H hidden, F ffn, E experts.

- y = W_down (silu(W_gate x) * W_up x * p): the routing weight p is folded in before the down projection, which is
  exact because experts have no biases, and spares keeping the unweighted output for backward.
- gate_up [E, 2F, H]: the gate's F rows first, then up's; down [E, H, F]. No biases.
- "grouped" is grouped_swiglu.py; "looped" is its oracle, expert by expert in plain torch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megatron_yuan.config.schema import ModelConfig
from megatron_yuan.model.moe.dispatch import Dispatch
from megatron_yuan.model.moe.grouped_swiglu import grouped_swiglu


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
        return grouped_swiglu(x_RH, weights_R, self.gate_up, self.down, dispatch)

    def _forward_looped(self, x_RH: Tensor, weights_R: Tensor, dispatch: Dispatch) -> Tensor:
        counts = dispatch.counts_E.tolist()
        parts = []
        for e, (x, p) in enumerate(zip(x_RH.split(counts), weights_R.split(counts), strict=True)):
            gate, up = F.linear(x, self.gate_up[e]).chunk(2, dim=-1)
            parts.append(F.linear(F.silu(gate) * up * p.unsqueeze(-1), self.down[e]))
        return torch.cat(parts)

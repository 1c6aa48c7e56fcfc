"""The experts: E SwiGLU networks over rows sorted by expert.

Shapes: R rows, H hidden, F ffn, E experts.

- y = W_down (silu(W_gate x) * W_up x * p): the routing weight p is folded in before the down projection, which is
  exact because experts have no biases, and spares keeping the unweighted output for backward.
- gate_up [E, 2F, H]: the gate's F rows first, then up's; down [E, H, F]. No biases.
- "grouped" is one grouped_mm a projection, on CPU and GPU alike; "looped" is the oracle, expert by expert.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megatron_yuan.config.schema import ModelConfig
from megatron_yuan.model.moe.dispatch import Dispatch


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
        if self.looped or not _fits_grouped_mm(self.gate_up, self.down):
            return self._forward_looped(x_RH, weights_R, dispatch)
        h_R2F = F.grouped_mm(x_RH, self.gate_up.transpose(1, 2), offs=dispatch.ends_E)
        return F.grouped_mm(swiglu(h_R2F, weights_R), self.down.transpose(1, 2), offs=dispatch.ends_E)

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


def _fits_grouped_mm(*weights: Tensor) -> bool:
    # grouped_mm wants rows of a multiple of 16 bytes; other shapes are small models, for which a loop is as good.
    return all(w.shape[i] * w.element_size() % 16 == 0 for w in weights for i in (1, 2))

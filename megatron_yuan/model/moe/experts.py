"""The experts: SwiGLU networks over rows sorted by expert.

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
from megatron_yuan.model.moe.grouped_swiglu import grouped_swiglu, row_counts
from megatron_yuan.model.product import product


class Experts(nn.Module):
    """All experts of a layer, their weights stacked."""

    def __init__(self, num_experts: int, ffn_size: int, config: ModelConfig) -> None:
        super().__init__()
        self.gate_up = nn.Parameter(torch.empty(num_experts, 2 * ffn_size, config.hidden_size))
        self.down = nn.Parameter(torch.empty(num_experts, config.hidden_size, ffn_size))
        self.looped = config.moe_experts == "looped"
        self.keep_h = True
        """Whether backward is handed the first product, or makes it again; the looped experts always keep it."""

    def forward(self, x_RH: Tensor, weights_R: Tensor, ends_E: Tensor) -> Tensor:
        """Outputs [R, H] of rows sorted by expert, expert e's ending at `ends_E[e]`, each times its routing weight."""
        if self.looped:
            return self._forward_looped(x_RH, weights_R, row_counts(ends_E))
        return grouped_swiglu(x_RH, weights_R, self.gate_up, self.down, ends_E, self.keep_h)

    def takes_one(self, x_1H: Tensor) -> bool:
        """Whether `of_one` is to be used: on a CPU, in generation, where many small steps would be most of the time."""
        return torch.is_inference_mode_enabled() and not (self.looped or x_1H.is_cuda)

    def of_one(self, x_1H: Tensor, experts: list[int], weights: list[float]) -> Tensor:
        """The weighted sum [1, H] of these experts' outputs for one token."""
        rows = []
        for e, p in zip(experts, weights, strict=True):
            gate_1F, up_1F = product(x_1H, self.gate_up[e]).chunk(2, dim=-1)
            rows.append(product(F.silu(gate_1F).mul_(up_1F).mul_(p), self.down[e]))
        return torch.cat(rows).sum(dim=0, keepdim=True)  # rounded once, whatever their number

    def _forward_looped(self, x_RH: Tensor, weights_R: Tensor, counts: list[int]) -> Tensor:
        parts = []
        for e, (x, p) in enumerate(zip(x_RH.split(counts), weights_R.split(counts), strict=True)):
            gate, up = F.linear(x, self.gate_up[e]).chunk(2, dim=-1)
            parts.append(F.linear(F.silu(gate) * up * p.unsqueeze(-1), self.down[e]))
        return torch.cat(parts)


class SharedExperts(Experts):
    """Experts that every token visits with weight 1: together they are one SwiGLU of their summed width."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(1, config.num_shared_experts * config.ffn_hidden_size, config)

    def forward(self, x_TH: Tensor) -> Tensor:  # type: ignore[override]
        """The sum of their outputs, [T, H]."""
        ends_1 = torch.full((1,), x_TH.shape[0], dtype=torch.int32, device=x_TH.device)
        return super().forward(x_TH, x_TH.new_ones(x_TH.shape[0]), ends_1)

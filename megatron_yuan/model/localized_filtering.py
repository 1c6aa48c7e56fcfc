"""Localized filtering: what makes Yuan's attention look at its neighbours before it looks far (Yuan 2.0 paper,
section 3.1).

Shapes: B batch, S sequence, H hidden, C = H/2.

- Two causal convolutions of width 2 over the full width, H -> C -> H, with biases and no activation, then a residual
  and RMSNorm.
- A width-2 convolution is two matrices, one a tap: y[t] = W[0] u[t-1] + W[1] u[t] + b. Both taps are one product of
  u with the stacked matrix; the earlier tap's half is then shifted by one token. So training, prefill, chunked
  prefill and one-token decoding are the same few lines: what is shifted in at the left is zero at a start, or the
  state of the last token.
- The padding between the convolutions is a true zero, not the first one's bias.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from megatron_yuan.model.norm import RMSNorm
from megatron_yuan.model.product import product


class FilterState(NamedTuple):
    """The earlier tap's product with the last token seen, for each convolution: [B, C] and [B, H]."""

    conv1_BC: Tensor
    conv2_BH: Tensor


class CausalConv2Tap(nn.Module):
    """Causal convolution of width 2: y[t] = W[0] u[t-1] + W[1] u[t] + b."""

    def __init__(self, in_size: int, out_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(2, out_size, in_size))  # [tap, out, in]: tap 0 meets the previous token
        self.bias = nn.Parameter(torch.empty(out_size))

    def forward(self, u: Tensor, state: Tensor | None, starts: Tensor | None) -> tuple[Tensor, Tensor]:
        """Filter `u` [B, S, in] -> [B, S, out], and the state [B, out] after the last token.

        `state` is what the token before `u` left behind (None: nothing, the sequence starts here); `starts` [B, S]
        is true at the first token of each document, which then sees nothing before it.
        """
        previous, current = product(u, self.weight.flatten(0, 1)).chunk(2, dim=-1)
        first = torch.zeros_like(previous[:, :1]) if state is None else state.unsqueeze(1)
        shifted = torch.cat((first, previous[:, :-1]), dim=1) if u.shape[1] > 1 else first
        if starts is not None:
            shifted = shifted.masked_fill(starts.unsqueeze(-1), 0)
        return current + shifted + self.bias, previous[:, -1]


class LocalizedFiltering(nn.Module):
    """f = RMSNorm(conv2(conv1(u)) + u), reaching two tokens back."""

    def __init__(self, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.conv1 = CausalConv2Tap(hidden_size, hidden_size // 2)
        self.conv2 = CausalConv2Tap(hidden_size // 2, hidden_size)
        self.norm = RMSNorm(hidden_size, eps)

    def forward(
        self, u_BSH: Tensor, state: FilterState | None = None, starts_BS: Tensor | None = None
    ) -> tuple[Tensor, FilterState]:
        """Filter [B, S, H] -> [B, S, H], and the state with which the next token goes on."""
        y_BSC, state1_BC = self.conv1(u_BSH, state.conv1_BC if state else None, starts_BS)
        z_BSH, state2_BH = self.conv2(y_BSC, state.conv2_BH if state else None, starts_BS)
        return self.norm(z_BSH + u_BSH), FilterState(state1_BC, state2_BH)

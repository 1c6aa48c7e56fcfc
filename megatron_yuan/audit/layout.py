"""One view of everything that passes between parts: token by token, [B, S, ...].

Shapes: B batch, S sequence, T = B x S tokens, K choices of a token, R rows of the routed experts.

Hidden states are that already, what the experts' layer works on is [T, ...], and rows of the routed experts are found
again by the routing: sorted by expert, stable, choices that name no expert left out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from megatron_yuan.model.moe.routers.base import Routing


class TokenView(NamedTuple):
    """A tensor as [B, S, ...], and the way back to its own shape."""

    tokens: Tensor
    back: Callable[[Tensor], Tensor]


def token_view(x: Tensor, batch: int, sequence: int) -> TokenView | None:
    """[B, S, ...] or [T, ...] token by token; None where it is neither, such as a sum over tokens or a state."""
    if x.dim() >= 2 and x.shape[:2] == (batch, sequence):
        return TokenView(x, lambda tokens: tokens)
    if x.dim() >= 1 and x.shape[0] == batch * sequence:
        return TokenView(x.unflatten(0, (batch, sequence)), lambda tokens: tokens.flatten(0, 1))
    return None


def row_view(x_R: Tensor, routing: Routing, batch: int, sequence: int) -> TokenView | None:
    """Rows [R, ...] of the routed experts as [B, S, K, ...], 0 for a choice that names no expert."""
    pair_R = rows_to_pairs(routing.experts_TK)
    choices = routing.experts_TK.shape[1]
    if x_R.dim() == 0 or x_R.shape[0] != pair_R.shape[0]:
        return None
    pairs = x_R.new_zeros(batch * sequence * choices, *x_R.shape[1:]).index_copy(0, pair_R, x_R)
    return TokenView(pairs.unflatten(0, (batch, sequence, choices)), lambda tokens: tokens.flatten(0, 2)[pair_R])


def rows_to_pairs(experts_TK: Tensor) -> Tensor:
    """For each row of the routed experts its pair t * K + k, [R]."""
    expert_TK = experts_TK.flatten()
    order_TK = torch.where(expert_TK >= 0, expert_TK, expert_TK.max() + 1).argsort(stable=True)
    return order_TK[: int((expert_TK >= 0).sum())]

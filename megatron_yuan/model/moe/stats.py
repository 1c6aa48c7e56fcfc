"""What a layer's routing looks like, in sums that add up over microbatches and replicas.

Shapes: T tokens, E experts, K choices of a token, L layers (in front, once layers are stacked).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from megatron_yuan.model.moe.routers.base import Routing


class RouterStats(NamedTuple):
    """Sums over tokens, float32 from a layer; none has a gradient."""

    coactivation_EE: Tensor
    """Tokens that visited both experts; on the diagonal, all that visited one: its load."""
    margin: Tensor
    """Of the two highest probabilities of each token, the difference."""
    balance_loss: Tensor
    """Balance losses, times the tokens that they count for."""

    @property
    def load_E(self) -> Tensor:
        """Rows of each expert."""
        return self.coactivation_EE.diagonal(dim1=-2, dim2=-1)


@torch.no_grad()
def routing_stats(routing: Routing) -> RouterStats:
    """Count one microbatch; the balance loss is 0 until it is known."""
    T, E = routing.logits_TE.shape
    # A column more takes the choices that name no expert.
    column_TK = routing.experts_TK if routing.rows is None else routing.experts_TK.remainder(E + 1)
    visited_TE = routing.logits_TE.new_zeros(T, E + 1).scatter_(1, column_TK, 1.0)[:, :E]
    top_T2 = routing.logits_TE.softmax(dim=-1).topk(min(2, E), dim=-1).values
    margin = (top_T2[:, 0] - top_T2[:, -1]).sum()
    return RouterStats(visited_TE.t() @ visited_TE, margin, margin.new_zeros(()))


def pack(stats: RouterStats) -> Tensor:
    """Stacked stats as one matrix [L, E x E + 2] in float64, which counts exactly up to 2^53."""
    columns = (stats.coactivation_EE.flatten(1), stats.margin.unsqueeze(1), stats.balance_loss.unsqueeze(1))
    return torch.cat(columns, dim=1).double()


def unpack(packed_LX: Tensor) -> RouterStats:
    """The inverse of `pack`."""
    experts = math.isqrt(packed_LX.shape[1] - 2)
    coactivation_LEE = packed_LX[:, :-2].unflatten(1, (experts, experts))
    return RouterStats(coactivation_LEE, packed_LX[:, -2], packed_LX[:, -1])


def stack(stats: Sequence[RouterStats]) -> RouterStats:
    """Layers one upon another."""
    return RouterStats(*(torch.stack(parts) for parts in zip(*stats, strict=True)))

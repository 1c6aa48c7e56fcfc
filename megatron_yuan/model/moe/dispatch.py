"""Token permutation: copies of tokens sorted by expert, and back. Deterministic, each the other's adjoint.

Shapes: T tokens, K choices of a token, H hidden, E experts, R rows: pairs (token, expert), T x K where every choice
names an expert.

Nothing here waits for the device: R is known before any expert is.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Dispatch(NamedTuple):
    """How R pairs are sorted by expert, and where each token finds its rows again."""

    pair_R: Tensor
    """Sorted row -> pair t * K + k; stable, so tokens keep their order within an expert."""
    token_R: Tensor
    """Sorted row -> token."""
    row_R: Tensor
    """The sorted rows of token 0, then those of token 1, ..."""
    begin_T: Tensor
    """Where in `row_R` the rows of each token begin; a token may have none."""
    ends_E: Tensor
    """One past the last sorted row of each expert, int32: the offsets of grouped_mm."""


def plan_dispatch(experts_TK: Tensor, num_experts: int, rows: int | None = None) -> Dispatch:
    """Sort the pairs of `experts` [T, K] by expert; `rows`: how many of them name one, the others being -1."""
    T, K = experts_TK.shape
    expert_TK = experts_TK.flatten()
    if rows is not None:
        expert_TK = expert_TK.where(expert_TK >= 0, num_experts)  # last in order, and cut off
    sorted_TK, order_TK = expert_TK.sort(stable=True)
    pair_R = order_TK[:rows]
    # Pairs are numbered token by token, so their order is the tokens'.
    pairs_R, row_R = pair_R.sort()
    begin_T = torch.searchsorted(pairs_R, torch.arange(0, T * K, K, device=pair_R.device))
    experts_E = torch.arange(num_experts, device=pair_R.device)
    ends_E = torch.searchsorted(sorted_TK[:rows], experts_E, right=True, out_int32=True)
    return Dispatch(pair_R, pair_R // K, row_R, begin_T, ends_E)


def permute(x_TH: Tensor, dispatch: Dispatch) -> Tensor:
    """Rows [R, H] for the experts, sorted by expert, from tokens [T, H]."""
    return _Permute.apply(x_TH, dispatch)


def unpermute(y_RH: Tensor, dispatch: Dispatch) -> Tensor:
    """Tokens [T, H], each the sum of its rows (0 where it has none), from sorted rows [R, H]."""
    return _Unpermute.apply(y_RH, dispatch)


def _spread(x_TH: Tensor, dispatch: Dispatch) -> Tensor:
    return x_TH.index_select(0, dispatch.token_R)


def _sum_rows(y_RH: Tensor, dispatch: Dispatch) -> Tensor:
    # Unlike index_add, this adds a token's rows in the same order on every device and every time, and in float32.
    return F.embedding_bag(dispatch.row_R, y_RH, dispatch.begin_T, mode="sum")


class _Permute(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_TH: Tensor, dispatch: Dispatch) -> Tensor:
        ctx.dispatch = dispatch
        return _spread(x_TH, dispatch)

    @staticmethod
    def backward(ctx, grad_RH: Tensor) -> tuple[Tensor, None]:
        return _sum_rows(grad_RH, ctx.dispatch), None


class _Unpermute(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y_RH: Tensor, dispatch: Dispatch) -> Tensor:
        ctx.dispatch = dispatch
        return _sum_rows(y_RH, dispatch)

    @staticmethod
    def backward(ctx, grad_TH: Tensor) -> tuple[Tensor, None]:
        return _spread(grad_TH, ctx.dispatch), None

"""Token permutation: copies of tokens sorted by expert, and back. Dropless, deterministic, each the other's adjoint.

Shapes: T tokens, K chosen, H hidden, R = T x K rows, E experts.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Dispatch(NamedTuple):
    """How R = T x K (token, choice) pairs are sorted by expert."""

    order_R: Tensor
    """Sorted row -> pair t * K + k; stable, so tokens keep their order within an expert."""
    inverse_R: Tensor
    """Pair -> sorted row."""
    counts_E: Tensor
    """Rows of each expert, int64."""
    ends_E: Tensor
    """One past the last row of each expert, int32: the offsets of grouped_mm."""
    topk: int


def plan_dispatch(experts_TK: Tensor, num_experts: int) -> Dispatch:
    """Sort the pairs of `experts` [T, K] by expert, without leaving the device."""
    expert_R = experts_TK.flatten()
    order_R = expert_R.argsort(stable=True)
    inverse_R = torch.empty_like(order_R)
    inverse_R[order_R] = torch.arange(order_R.numel(), device=order_R.device)
    counts_E = torch.bincount(expert_R, minlength=num_experts)
    return Dispatch(order_R, inverse_R, counts_E, counts_E.cumsum(0).int(), experts_TK.shape[1])


def permute(x_TH: Tensor, dispatch: Dispatch) -> Tensor:
    """Rows [R, H] for the experts, sorted by expert, from tokens [T, H]."""
    return _Permute.apply(x_TH, dispatch)


def unpermute(y_RH: Tensor, dispatch: Dispatch) -> Tensor:
    """Tokens [T, H], each the sum of its K rows, from sorted rows [R, H]."""
    return _Unpermute.apply(y_RH, dispatch)


def _gather(x_TH: Tensor, dispatch: Dispatch) -> Tensor:
    return x_TH.index_select(0, dispatch.order_R // dispatch.topk)


def _gather_and_sum(y_RH: Tensor, dispatch: Dispatch) -> Tensor:
    # A gather and a sum of K rows, unlike index_add, adds in the same order on every device and every time.
    return y_RH.index_select(0, dispatch.inverse_R).view(-1, dispatch.topk, y_RH.shape[1]).sum(dim=1)


class _Permute(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_TH: Tensor, dispatch: Dispatch) -> Tensor:
        ctx.dispatch = dispatch
        return _gather(x_TH, dispatch)

    @staticmethod
    def backward(ctx, grad_RH: Tensor) -> tuple[Tensor, None]:
        return _gather_and_sum(grad_RH, ctx.dispatch), None


class _Unpermute(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y_RH: Tensor, dispatch: Dispatch) -> Tensor:
        ctx.dispatch = dispatch
        return _gather_and_sum(y_RH, dispatch)

    @staticmethod
    def backward(ctx, grad_TH: Tensor) -> tuple[Tensor, None]:
        return _gather(grad_TH, ctx.dispatch), None

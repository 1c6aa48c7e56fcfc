"""The attention router of Yuan 2.0-M32: experts attend to each other before they are scored (M32 paper, section 3).

Shapes: T tokens, H hidden, E experts.

For each token alone: q, k, v in R^E are three projections of its state, A = softmax over j of q_i k_j (no scaling),
and the score of expert i is P_i = sum_j A_ij v_j. Nothing of it mixes tokens, by construction.

The E x E matrix of a token is never kept: forward and backward go through the tokens in chunks that fit a cache, and
backward makes it again from q, k, v (on CUDA a kernel does, kernels/expert_attention.py). With g = dL/dP:
    dv_j = sum_i A_ij g_i,   dS_ij = A_ij g_i (v_j - P_i),   dq_i = sum_j dS_ij k_j,   dk_j = sum_i dS_ij q_i.
"""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_yuan.model.moe.kernels import kernel_for
from megatron_yuan.model.moe.routers.base import Router
from megatron_yuan.model.product import product

CHUNK_ELEMENTS = 2**18  # of the [chunk, E, E] matrix: 1 MiB in float32, within a core's second-level cache


class AttentionRouter(Router):
    """Rows of the weight: E of q, E of k, E of v. The projection is in the model's dtype, the rest in float32."""

    rows_per_expert = 3

    def logits(self, x_TH: Tensor) -> Tensor:
        """P [T, E]."""
        qkv = product(x_TH, self.weight)
        kernel = kernel_for("expert_attention", qkv)
        if kernel is not None:
            return kernel.expert_attention(qkv)
        return expert_attention(*qkv.float().chunk(3, dim=-1))


def expert_attention(q_TE: Tensor, k_TE: Tensor, v_TE: Tensor) -> Tensor:
    """P_i = sum_j softmax_j(q_i k_j) v_j for each token, [T, E] float32."""
    if q_TE.shape[0] == 1 and torch.is_inference_mode_enabled():  # in generation, where each step around it counts
        return torch.bmm(_attention_matrix(q_TE, k_TE), v_TE.unsqueeze(2)).squeeze(2)
    return _ExpertAttention.apply(q_TE, k_TE, v_TE)


def _attention_matrix(q_TE: Tensor, k_TE: Tensor) -> Tensor:
    return torch.softmax(q_TE.unsqueeze(2) * k_TE.unsqueeze(1), dim=2)  # [T, E of q, E of k]


class _ExpertAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q_TE: Tensor, k_TE: Tensor, v_TE: Tensor) -> Tensor:
        ctx.chunk = max(1, CHUNK_ELEMENTS // q_TE.shape[1] ** 2)
        chunks = zip(*(x.split(ctx.chunk) for x in (q_TE, k_TE, v_TE)), strict=True)
        p_TE = torch.cat([torch.bmm(_attention_matrix(q, k), v.unsqueeze(2)).squeeze(2) for q, k, v in chunks])
        ctx.save_for_backward(q_TE, k_TE, v_TE, p_TE)
        return p_TE

    @staticmethod
    def backward(ctx, g_TE: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q_TE, k_TE, v_TE, p_TE = ctx.saved_tensors
        grads: list[list[Tensor]] = [[], [], []]
        for q, k, v, p, g in zip(*(x.split(ctx.chunk) for x in (q_TE, k_TE, v_TE, p_TE, g_TE)), strict=True):
            ga = _attention_matrix(q, k).mul_(g.unsqueeze(2))  # g_i A_ij
            grads[2].append(ga.sum(dim=1))
            ds = ga.mul_(v.unsqueeze(1) - p.unsqueeze(2))
            grads[0].append(torch.bmm(ds, k.unsqueeze(2)).squeeze(2))
            grads[1].append(torch.bmm(q.unsqueeze(1), ds).squeeze(1))
        dq, dk, dv = (torch.cat(parts) for parts in grads)
        return dq, dk, dv

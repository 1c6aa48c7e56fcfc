"""The attention router in one pass over the projection, forward and back; oracle: routers/attention.py.

Shapes: T tokens, E experts, Z tokens of a program, X: E rounded up to a power of two.

A program has the [Z, X, X] matrices of its tokens in registers and nowhere else: forward keeps the projection and P
alone, backward makes A again. Expert columns beyond E have no key (their scores are -inf) and no gradient.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false
# What is inside @triton.jit is Triton's language, not Python's.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

TYPES = (torch.float32, torch.bfloat16, torch.float16)
MOST_EXPERTS = 128  # a token's matrix fills the registers of 16 warps
MOST_TOKENS = 64  # of a program
MATRIX_ELEMENTS = 2048  # of a program's [Z, X, X], where a single token's are not more
WARP_ELEMENTS = 512  # of it for each warp


def unfit(qkv: Tensor) -> str | None:
    """Why the kernel cannot take `qkv` [T, 3E]; None where it can."""
    if qkv.shape[1] // 3 > MOST_EXPERTS:
        return f"{qkv.shape[1] // 3} experts, and it takes at most {MOST_EXPERTS}"
    return None if qkv.dtype in TYPES else f"{qkv.dtype}"


def trial(device: torch.device) -> None:
    """Run both directions on one token, so that what fails does so here."""
    qkv = torch.zeros(1, 6, device=device)
    _gradient(qkv, _scores(qkv), torch.zeros(1, 2, device=device)).sum().item()


def expert_attention(qkv: Tensor) -> Tensor:
    """P [T, E] float32 of qkv [T, 3E] (E of q, E of k, E of v in each row), as the projection leaves it."""
    return _ExpertAttention.apply(qkv.contiguous())


class _ExpertAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, qkv: Tensor) -> Tensor:
        p_TE = _scores(qkv)
        ctx.save_for_backward(qkv, p_TE)
        return p_TE

    @staticmethod
    @once_differentiable
    def backward(ctx, g_TE: Tensor) -> Tensor:
        qkv, p_TE = ctx.saved_tensors
        return _gradient(qkv, p_TE, g_TE.contiguous())


def _scores(qkv: Tensor) -> Tensor:
    T, E = qkv.shape[0], qkv.shape[1] // 3
    p_TE = torch.empty(T, E, dtype=torch.float32, device=qkv.device)
    if T:
        grid, options = _launch(T, E)
        with torch.cuda.device_of(qkv):  # triton takes the current device, whatever the tensors' is
            _forward[grid](qkv, p_TE, T, E, **options)
    return p_TE


def _gradient(qkv: Tensor, p_TE: Tensor, g_TE: Tensor) -> Tensor:
    grad = torch.empty_like(qkv)
    T, E = p_TE.shape
    if T:
        grid, options = _launch(T, E)
        with torch.cuda.device_of(qkv):
            _backward[grid](qkv, p_TE, g_TE, grad, T, E, **options)
    return grad


def _launch(tokens: int, experts: int) -> tuple[tuple[int], dict[str, int | bool]]:
    X = triton.next_power_of_2(experts)
    Z = min(MOST_TOKENS, max(1, MATRIX_ELEMENTS // X**2))
    warps = min(16, max(4, Z * X**2 // WARP_ELEMENTS))
    # Without fused multiply-add q k is rounded once: fused into the subtraction of the maximum it would leave, at
    # scores of 1e18, the product's rounding error of 1e10 in an exponent.
    return (triton.cdiv(tokens, Z),), {"Z": Z, "X": X, "num_warps": warps, "enable_fp_fusion": False}


@triton.jit
def _load_qkv(qkv, T, E, Z: tl.constexpr, X: tl.constexpr):
    rows = tl.program_id(0).to(tl.int64) * Z + tl.arange(0, Z)
    columns = tl.arange(0, X)
    inside = (rows < T)[:, None] & (columns < E)[None, :]
    at = qkv + rows[:, None] * (3 * E) + columns[None, :]
    q = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    k = tl.load(at + E, mask=inside, other=0.0).to(tl.float32)
    v = tl.load(at + 2 * E, mask=inside, other=0.0).to(tl.float32)
    return rows, columns, inside, q, k, v


@triton.jit
def _attention_matrix(q, k, columns, E):
    scores = q[:, :, None] * k[:, None, :]
    scores = tl.where((columns < E)[None, None, :], scores, float("-inf"))
    weights = tl.exp(scores - tl.max(scores, axis=2)[:, :, None])
    return weights / tl.sum(weights, axis=2)[:, :, None]


@triton.jit
def _forward(qkv, out, T, E, Z: tl.constexpr, X: tl.constexpr):
    rows, columns, inside, q, k, v = _load_qkv(qkv, T, E, Z, X)
    a = _attention_matrix(q, k, columns, E)
    p = tl.sum(a * v[:, None, :], axis=2)
    tl.store(out + rows[:, None] * E + columns[None, :], p, mask=inside)


@triton.jit
def _backward(qkv, p_of, g_of, grad, T, E, Z: tl.constexpr, X: tl.constexpr):
    rows, columns, inside, q, k, v = _load_qkv(qkv, T, E, Z, X)
    at = rows[:, None] * E + columns[None, :]
    p = tl.load(p_of + at, mask=inside, other=0.0)
    g = tl.load(g_of + at, mask=inside, other=0.0).to(tl.float32)
    ga = _attention_matrix(q, k, columns, E) * g[:, :, None]
    ds = ga * (v[:, None, :] - p[:, :, None])
    to = grad + rows[:, None] * (3 * E) + columns[None, :]
    kind = grad.dtype.element_ty
    tl.store(to, tl.sum(ds * k[:, None, :], axis=2).to(kind), mask=inside)
    tl.store(to + E, tl.sum(ds * q[:, :, None], axis=1).to(kind), mask=inside)
    tl.store(to + 2 * E, tl.sum(ga, axis=1).to(kind), mask=inside)

"""All experts' SwiGLU networks over rows sorted by expert, forward and backward, keeping as little as can be.

Shapes: R rows, H hidden, F ffn, E experts; per expert r of the R rows.

    h = x W1^T,   a = silu(gate) * up * p   with (gate, up) the halves of h,   y = a W2^T

Only x and h are kept for backward; a is made again there, from one pass over h. With g = dL/da, s = silu(gate):
    dp = sum_F g s up,   dup = g p s,   dgate = silu'(gate) g p up.

h is by far the largest thing that a layer keeps (2KF of a token). Where it is not to be kept, its product is made again
in backward: two ninths more arithmetic in the experts, and the same numbers to the bit.

- On a GPU in bfloat16 each product is torch's grouped_mm: one kernel for all experts, no copy to the host.
- Elsewhere experts go one after another, each a plain product written into place. On a CPU that is the faster form: an
  expert's rows stay in cache between the products, and grouped_mm there is 2-3 times as slow forward and up to 1.7
  times as slow for the weights' gradient (tools/benchmark.py measures the whole step).
- There, in inference in bfloat16 with AMX, products are taken from the left, (W x^T)^T: the right operand is the one
  that is packed for the processor's tiles, and so it is the few rows, not the weights. That is 1.1 to 1.4 times as
  fast for up to 512 rows an expert, and no slower for more; without AMX, or in float32, few rows would be slower.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from megatron_yuan.model.moe.kernels import kernel_for
from megatron_yuan.model.product import reads_from_the_left
from megatron_yuan.model.weight_gradient import WeightGradient


def grouped_swiglu(
    x_RH: Tensor, p_R: Tensor, gate_up_E2FH: Tensor, down_EHF: Tensor, ends_E: Tensor, keep_h: bool = True
) -> Tensor:
    """y [R, H]: each row through its expert, whose rows end at `ends_E`, times its routing weight p.

    keep_h: for backward; else it is made again there.
    """
    if x_RH.is_cuda and _fits_grouped_mm(x_RH, gate_up_E2FH, down_EHF):
        return _Grouped.apply(x_RH, p_R, gate_up_E2FH, down_EHF, ends_E, keep_h)
    counts = row_counts(ends_E)
    if reads_from_the_left(x_RH):
        return _from_the_left(x_RH, p_R, gate_up_E2FH, down_EHF, counts)
    return _OneByOne.apply(x_RH, p_R, gate_up_E2FH, down_EHF, counts, keep_h)


def row_counts(ends_E: Tensor) -> list[int]:
    """Rows of each expert, on the host."""
    return ends_E.diff(prepend=ends_E.new_zeros(1)).tolist()


def activation(h_R2F: Tensor, p_R: Tensor) -> Tensor:
    """silu(gate) * up * p, [R, F]."""
    kernel = kernel_for("swiglu", h_R2F)
    if kernel is not None:
        return kernel.activation(h_R2F, p_R)
    gate, up = h_R2F.chunk(2, dim=-1)
    return F.silu(gate).mul_(up).mul_(p_R.unsqueeze(1))


def activation_backward(grad_RF: Tensor, h_R2F: Tensor, p_R: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The activation again, and the gradients by h [R, 2F] and by p [R], from the gradient by the activation."""
    kernel = kernel_for("swiglu", h_R2F)
    if kernel is not None:
        return kernel.activation_backward(grad_RF, h_R2F, p_R)
    gate, up = h_R2F.chunk(2, dim=-1)
    silu_up = F.silu(gate)
    grad_h = torch.empty_like(h_R2F)
    grad_gate, grad_up = grad_h.chunk(2, dim=-1)
    weighted = grad_RF * p_R.unsqueeze(1)
    torch.mul(weighted, silu_up, out=grad_up)
    grad_gate.copy_(torch.ops.aten.silu_backward(weighted.mul_(up), gate))
    silu_up.mul_(up)
    grad_p = torch.linalg.vecdot(grad_RF, silu_up)
    return silu_up.mul_(p_R.unsqueeze(1)), grad_h, grad_p


def _fits_grouped_mm(x_RH: Tensor, *weights: Tensor) -> bool:
    # It wants bfloat16, and rows of a multiple of 16 bytes.
    return x_RH.dtype == torch.bfloat16 and all(size % 8 == 0 for w in weights for size in w.shape[1:])


def _from_the_left(x_RH: Tensor, p_R: Tensor, gate_up: Tensor, down: Tensor, counts: list[int]) -> Tensor:
    y_RH = torch.empty_like(x_RH)
    rows = (_split(each, counts) for each in (x_RH, p_R, y_RH))
    for x, p, y, w1, w2 in zip(*rows, gate_up, down, strict=True):
        if not len(x):
            continue  # in decoding, most experts
        if len(x) == 1:
            x, y = x[0], y[0]  # a matrix-vector product
        gate_FR, up_FR = torch.matmul(w1, x.t()).chunk(2)
        torch.matmul(w2, F.silu(gate_FR, inplace=True).mul_(up_FR).mul_(p), out=y.t())
    return y_RH


class _Grouped(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_RH: Tensor, p_R: Tensor, gate_up: Tensor, down: Tensor, ends_E: Tensor, keep_h: bool) -> Tensor:
        h_R2F = F.grouped_mm(x_RH, gate_up.transpose(1, 2), offs=ends_E)
        ctx.save_for_backward(x_RH, h_R2F if keep_h else None, p_R, gate_up, down, ends_E)
        return F.grouped_mm(activation(h_R2F, p_R), down.transpose(1, 2), offs=ends_E)

    @staticmethod
    @once_differentiable  # Triton's kernels leave nothing for a second derivative
    def backward(ctx, grad_RH: Tensor) -> tuple[Tensor | None, ...]:
        x_RH, h_R2F, p_R, gate_up, down, ends_E = ctx.saved_tensors
        if h_R2F is None:
            h_R2F = F.grouped_mm(x_RH, gate_up.transpose(1, 2), offs=ends_E)
        a_RF, grad_h, grad_p = activation_backward(F.grouped_mm(grad_RH, down, offs=ends_E), h_R2F, p_R)
        grad_down = F.grouped_mm(grad_RH.t(), a_RF, offs=ends_E)
        grad_gate_up = F.grouped_mm(grad_h.t(), x_RH, offs=ends_E)
        return F.grouped_mm(grad_h, gate_up, offs=ends_E), grad_p, grad_gate_up, grad_down, None, None


class _OneByOne(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, x_RH: Tensor, p_R: Tensor, gate_up: Tensor, down: Tensor, counts: list[int], keep_h: bool
    ) -> Tensor:
        h_R2F = x_RH.new_empty(x_RH.shape[0], gate_up.shape[1]) if keep_h else None
        y_RH = torch.empty_like(x_RH)
        rows = (_split(each, counts) for each in (x_RH, p_R, h_R2F, y_RH))
        for x, p, h, y, w1, w2 in zip(*rows, gate_up, down, strict=True):
            if not len(x):
                continue  # in decoding, most experts
            h = torch.mm(x, w1.t(), out=h)
            torch.mm(activation(h, p), w2.t(), out=y)
        # Weights go as they are: torch's checkpoint detaches what is saved, and a detached weight has no sum to add to.
        ctx.counts, ctx.weights = counts, (gate_up, down)
        ctx.save_for_backward(x_RH, h_R2F, p_R)
        return y_RH

    @staticmethod
    def backward(ctx, grad_RH: Tensor) -> tuple[Tensor | None, ...]:
        x_RH, h_R2F, p_R = ctx.saved_tensors
        gate_up, down = ctx.weights
        grad_x, grad_p = torch.empty_like(x_RH), torch.empty_like(p_R)
        grad_gate_up, grad_down = WeightGradient(gate_up), WeightGradient(down)
        rows = (_split(each, ctx.counts) for each in (grad_RH, x_RH, h_R2F, p_R, grad_x, grad_p))
        for e, (grad, x, h, p, dx, dp, w1, w2) in enumerate(zip(*rows, gate_up, down, strict=True)):
            h = torch.mm(x, w1.t()) if h is None else h
            a, dh, dp_here = activation_backward(grad @ w2, h, p)
            dp.copy_(dp_here)
            grad_down.put_product(e, grad.t(), a)  # zeros where the expert has no rows
            grad_gate_up.put_product(e, dh.t(), x)
            torch.mm(dh, w1, out=dx)
        return grad_x, grad_p, grad_gate_up.complete(), grad_down.complete(), None, None


def _split(rows: Tensor | None, counts: list[int]) -> Sequence[Tensor | None]:
    return [None] * len(counts) if rows is None else rows.split(counts)

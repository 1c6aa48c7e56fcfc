"""SwiGLU times the routing weight in one pass, forward and backward; oracle: `activation` in grouped_swiglu.py.

Shapes: R rows, F ffn. Of each row h = (gate, up): a = silu(gate) * up * p. Arithmetic is in float32, whatever the type.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false
# What is inside @triton.jit is Triton's language, not Python's.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

TYPES = (torch.float32, torch.bfloat16, torch.float16)
MOST_COLUMNS = 1024  # of a row at a time


def unfit(h_R2F: Tensor) -> str | None:
    """Why the kernel cannot take `h`; None where it can."""
    return None if h_R2F.dtype in TYPES else f"{h_R2F.dtype}"


def trial(device: torch.device) -> None:
    """Run both directions on one row, so that what fails does so here."""
    h, p = torch.zeros(1, 4, device=device), torch.zeros(1, device=device)
    activation_backward(activation(h, p), h, p)[1].sum().item()


def activation(h_R2F: Tensor, p_R: Tensor) -> Tensor:
    """silu(gate) * up * p, [R, F]."""
    R, F = h_R2F.shape[0], h_R2F.shape[1] // 2
    h_R2F, p_R = h_R2F.contiguous(), p_R.contiguous()
    a_RF = h_R2F.new_empty(R, F)
    if R:
        with torch.cuda.device_of(h_R2F):  # triton takes the current device, whatever the tensors' is
            _forward[(R,)](h_R2F, p_R, a_RF, F, **_options(F))
    return a_RF


def activation_backward(grad_RF: Tensor, h_R2F: Tensor, p_R: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The activation again, and the gradients by h [R, 2F] and by p [R], from the gradient by the activation."""
    R, F = grad_RF.shape
    grad_RF, h_R2F, p_R = grad_RF.contiguous(), h_R2F.contiguous(), p_R.contiguous()
    a_RF, grad_h, grad_p = h_R2F.new_empty(R, F), torch.empty_like(h_R2F), torch.empty_like(p_R)
    if R:
        with torch.cuda.device_of(h_R2F):
            _backward[(R,)](grad_RF, h_R2F, p_R, a_RF, grad_h, grad_p, F, **_options(F))
    return a_RF, grad_h, grad_p


def _options(ffn: int) -> dict[str, int | bool]:
    # Said, because triton's default of fused multiply-add differs between its versions, and results with it.
    return {"X": min(MOST_COLUMNS, triton.next_power_of_2(ffn)), "enable_fp_fusion": False}


@triton.jit
def _forward(h, p, a, F: tl.constexpr, X: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    weight = tl.load(p + row).to(tl.float32)
    for begin in range(0, F, X):
        columns = begin + tl.arange(0, X)
        inside = columns < F
        gate = tl.load(h + row * 2 * F + columns, mask=inside, other=0.0).to(tl.float32)
        up = tl.load(h + row * 2 * F + F + columns, mask=inside, other=0.0).to(tl.float32)
        value = gate * tl.sigmoid(gate) * up * weight
        tl.store(a + row * F + columns, value.to(a.dtype.element_ty), mask=inside)


@triton.jit
def _backward(grad, h, p, a, grad_h, grad_p, F: tl.constexpr, X: tl.constexpr):
    # A row is one program's, so that the sum over it is in one order.
    row = tl.program_id(0).to(tl.int64)
    weight = tl.load(p + row).to(tl.float32)
    sums = tl.zeros([X], dtype=tl.float32)
    for begin in range(0, F, X):
        columns = begin + tl.arange(0, X)
        inside = columns < F
        g = tl.load(grad + row * F + columns, mask=inside, other=0.0).to(tl.float32)
        gate = tl.load(h + row * 2 * F + columns, mask=inside, other=0.0).to(tl.float32)
        up = tl.load(h + row * 2 * F + F + columns, mask=inside, other=0.0).to(tl.float32)
        sigmoid = tl.sigmoid(gate)
        silu = gate * sigmoid
        sums += g * silu * up
        by_gate = g * weight * up * sigmoid * (1.0 + gate * (1.0 - sigmoid))
        tl.store(a + row * F + columns, (silu * up * weight).to(a.dtype.element_ty), mask=inside)
        tl.store(grad_h + row * 2 * F + columns, by_gate.to(grad_h.dtype.element_ty), mask=inside)
        tl.store(grad_h + row * 2 * F + F + columns, (g * weight * silu).to(grad_h.dtype.element_ty), mask=inside)
    tl.store(grad_p + row, tl.sum(sums, axis=0).to(grad_p.dtype.element_ty))

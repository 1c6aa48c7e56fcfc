"""Rotary positions on the leading share of each head, half-rotation (NeoX) style.

Shapes: B batch, S sequence, R rotated width (even), D head width.

`rounding` reproduces the published code to the bit, because released weights were trained with its rounding:
- "none": inverse frequencies, angles, cos and sin in float32;
- "frequencies": the published training code, whose cast of the module to bfloat16 also rounds the inverse frequencies;
- "all": the published HF code, which computes position x frequency, cos and sin all in bfloat16.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rotary_tables(
    position_ids_BS: Tensor, rotary_dim: int, base: float, ntk_factor: float = 1.0, rounding: str = "none"
) -> tuple[Tensor, Tensor]:
    """cos and sin [B, S, R] in float32 for angles position x base^(-2i/R), i < R/2, each frequency twice.

    The base is first stretched to base * s^(R / (R - 2)) for an NTK factor s (Yuan 2.0-M32 paper, section 4.2).
    """
    if ntk_factor != 1.0:
        base = base * ntk_factor ** (rotary_dim / (rotary_dim - 2))
    exponents = torch.arange(0, rotary_dim, 2, dtype=torch.float32, device=position_ids_BS.device) / rotary_dim
    frequencies = 1.0 / base**exponents
    if rounding != "none":
        frequencies = frequencies.bfloat16()
    angle_dtype = torch.bfloat16 if rounding == "all" else torch.float32
    angles = position_ids_BS.to(angle_dtype).unsqueeze(-1) * frequencies.to(angle_dtype)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().float(), angles.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the first R channels of `x` [..., D] by tables that broadcast to [..., R]; the rest passes through."""
    rotary_dim = cos.shape[-1]
    head, rest = x[..., :rotary_dim], x[..., rotary_dim:]
    first, second = head.chunk(2, dim=-1)
    rotated = head * cos + torch.cat((-second, first), dim=-1) * sin
    return torch.cat((rotated, rest), dim=-1) if rest.shape[-1] else rotated

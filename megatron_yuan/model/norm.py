"""Root-mean-square norm: y = x / sqrt(mean(x^2) + eps) * weight, the statistics in float32."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """RMSNorm over the last axis, of width `size`; keeps shape and dtype."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `x` [..., size]."""
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)

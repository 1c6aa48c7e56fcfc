"""A weight's gradient that a backward of our own makes piece by piece.

Megatron's DDP gives each parameter a float32 sum over microbatches, `main_grad`, and leaves a parameter alone whose
`grad_added_to_main_grad` is set. A piece added right after it was made is still in the processor's cache, and need not
be written anywhere else: adding all of the experts' gradients afterwards costs four times as much on a CPU.
"""

from __future__ import annotations

import torch
from torch import Tensor


class WeightGradient:
    """The gradient of `weight` [N, ...] in N pieces, which go into DDP's sum where there is one."""

    def __init__(self, weight: Tensor) -> None:
        self._weight, self._sum = weight, getattr(weight, "main_grad", None)
        self._whole = torch.empty_like(weight)  # where there is a sum, a placeholder that nobody reads

    def put_product(self, n: int, a: Tensor, b: Tensor) -> None:
        """Piece n is the matrix product a b."""
        if self._sum is None:
            torch.mm(a, b, out=self._whole[n])
        else:
            self._sum[n].add_(a @ b)

    def complete(self) -> Tensor:
        """What autograd is to be given once every piece was put."""
        if self._sum is not None:
            self._weight.grad_added_to_main_grad = True  # type: ignore[attr-defined]
        return self._whole

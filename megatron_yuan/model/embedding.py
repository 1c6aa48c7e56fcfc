"""The token embedding, its gradient summed in float32.

On a CPU torch adds the rows of a bfloat16 embedding's gradient one by one in bfloat16: the sum over a token that occurs
a thousand times stops growing when a row is below 1/256 of it. On a GPU torch already sums in float32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TokenEmbedding(nn.Module):
    """A table [V, H], left unfilled."""

    def __init__(self, num_tokens: int, hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_tokens, hidden_size))

    def forward(self, ids_BS: Tensor) -> Tensor:
        """Rows [B, S, H] of the ids."""
        if self.weight.dtype == torch.float32 or self.weight.is_cuda:
            return F.embedding(ids_BS, self.weight)
        return _Lookup.apply(ids_BS, self.weight)


class _Lookup(torch.autograd.Function):
    @staticmethod
    def forward(ctx, ids_BS: Tensor, weight_VH: Tensor) -> Tensor:
        ctx.save_for_backward(ids_BS)
        ctx.rows = weight_VH.shape[0]
        return F.embedding(ids_BS, weight_VH)

    @staticmethod
    def backward(ctx, grad_BSH: Tensor) -> tuple[None, Tensor]:
        (ids_BS,) = ctx.saved_tensors
        grad_VH = torch.ops.aten.embedding_dense_backward(grad_BSH.float(), ids_BS, ctx.rows, -1, False)
        return None, grad_VH.to(grad_BSH.dtype)

"""Cross entropy of the next token straight from hidden states: the [T, V] logits never exist whole.

Shapes: T tokens, H hidden, V padded vocabulary, C tokens of a chunk.

Chunk by chunk: logits = h W^T, loss = logsumexp(logits) - logits[label] in float32, and, when a gradient will be
wanted, at once dlogits = (softmax - onehot) * mask, dh = dlogits W, dW += dlogits^T h. Backward then only scales.
This costs the same three matrix products as keeping the logits, for memory of C x V instead of T x V.
"""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK_ELEMENTS = 2**25  # of the [C, V] logits: 128 MiB in float32


def cross_entropy_sum(hidden_TH: Tensor, weight_VH: Tensor, labels_T: Tensor, mask_T: Tensor) -> Tensor:
    """Sum over tokens of mask x -log softmax(h W^T)[label], a float32 scalar. Labels must be in [0, V)."""
    return _LinearCrossEntropy.apply(hidden_TH, weight_VH, labels_T, mask_T.float())


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_TH: Tensor, weight_VH: Tensor, labels_T: Tensor, mask_T: Tensor) -> Tensor:
        wants_grad = any(ctx.needs_input_grad[:2])
        chunk = max(1, CHUNK_ELEMENTS // weight_VH.shape[0])
        total = torch.zeros((), dtype=torch.float32, device=hidden_TH.device)
        grad_hidden = torch.empty_like(hidden_TH) if wants_grad else None
        grad_weight = None
        for start in range(0, hidden_TH.shape[0], chunk):
            rows = slice(start, start + chunk)
            hidden, labels, mask = hidden_TH[rows], labels_T[rows].unsqueeze(1), mask_T[rows].unsqueeze(1)
            logits = (hidden @ weight_VH.t()).float()
            log_normalizer = logits.logsumexp(dim=1, keepdim=True)
            total += ((log_normalizer - logits.gather(1, labels)) * mask).sum()
            if grad_hidden is None:
                continue
            grad_logits = logits.sub_(log_normalizer).exp_()
            grad_logits.scatter_add_(1, labels, torch.full_like(log_normalizer, -1.0))
            grad_logits = grad_logits.mul_(mask).to(hidden.dtype)
            torch.mm(grad_logits, weight_VH, out=grad_hidden[rows])
            part = grad_logits.t() @ hidden
            # Chunks are added up in float32; a single one needs no second copy.
            grad_weight = part if grad_weight is None else grad_weight.float().add_(part)
        ctx.save_for_backward(grad_hidden, None if grad_weight is None else grad_weight.to(weight_VH.dtype))
        return total

    @staticmethod
    def backward(ctx, grad_total: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return (
            grad_hidden * grad_total.to(grad_hidden.dtype),
            grad_weight * grad_total.to(grad_weight.dtype),
            None,
            None,
        )

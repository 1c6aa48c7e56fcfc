"""Cross entropy of the next token straight from hidden states: the [T, V] logits never exist whole.

Shapes: T tokens, H hidden, V padded vocabulary, C tokens of a chunk.

Chunk by chunk: logits = h W^T, loss = logsumexp(logits) - logits[label] in float32, and, when a gradient will be
wanted, at once dlogits = (softmax - onehot) * mask, dh = dlogits W, dW += dlogits^T h. Backward then only scales.
This costs the same three matrix products as keeping the logits, for memory of C x V instead of T x V.
"""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK_TOKENS = {"cpu": 512, "cuda": 2048}  # C: enough for the matrix products to run at full speed, and no more
CACHED_ELEMENTS = 2**20  # of them that a CPU turns into losses and gradients at a time: 4 MiB in float32


def linear_cross_entropy(
    hidden_TH: Tensor, weight_VH: Tensor, labels_T: Tensor, mask_T: Tensor
) -> tuple[Tensor, Tensor]:
    """Token losses mask x -log softmax(h W^T)[label] in float32: their sum, which has a gradient, and each one [T].

    Labels must be in [0, V).
    """
    return _LinearCrossEntropy.apply(hidden_TH, weight_VH, labels_T, mask_T.float())


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_TH: Tensor, weight_VH: Tensor, labels_T: Tensor, mask_T: Tensor) -> tuple[Tensor, Tensor]:
        wants_grad = any(ctx.needs_input_grad[:2])
        chunk = CHUNK_TOKENS[hidden_TH.device.type]
        losses_T = mask_T.new_empty(mask_T.shape)
        grad_hidden = torch.empty_like(hidden_TH) if wants_grad else None
        grad_weight = None
        for start in range(0, hidden_TH.shape[0], chunk):
            rows = slice(start, start + chunk)
            hidden, labels, mask = hidden_TH[rows], labels_T[rows].unsqueeze(1), mask_T[rows].unsqueeze(1)
            logits = hidden @ weight_VH.t()
            losses_T[rows] = _losses_into_gradients(logits, labels, mask).squeeze(1)
            # From here on, `logits` is its own gradient.
            if grad_hidden is None:
                continue
            torch.mm(logits, weight_VH, out=grad_hidden[rows])
            part = logits.t() @ hidden
            # Chunks are added up in float32; a single one needs no second copy.
            grad_weight = part if grad_weight is None else grad_weight.float().add_(part)
        ctx.save_for_backward(grad_hidden, None if grad_weight is None else grad_weight.to(weight_VH.dtype))
        ctx.mark_non_differentiable(losses_T)
        return losses_T.sum(), losses_T

    @staticmethod
    def backward(ctx, grad_total: Tensor, _grad_losses: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return (
            grad_hidden * grad_total.to(grad_hidden.dtype),
            grad_weight * grad_total.to(grad_weight.dtype),
            None,
            None,
        )


def _losses_into_gradients(logits_CV: Tensor, labels_C1: Tensor, mask_C1: Tensor) -> Tensor:
    """The masked losses [C, 1] in float32; `logits` becomes their gradient by it, in place."""
    rows = logits_CV.shape[0] if logits_CV.is_cuda else max(1, CACHED_ELEMENTS // logits_CV.shape[1])
    losses = []
    for logits, labels, mask in zip(*(x.split(rows) for x in (logits_CV, labels_C1, mask_C1)), strict=True):
        log_probabilities = torch.log_softmax(logits, dim=1, dtype=torch.float32)
        losses.append(log_probabilities.gather(1, labels).neg_().mul_(mask))
        gradient = log_probabilities.exp_()
        gradient.scatter_add_(1, labels, torch.full_like(mask, -1.0))
        logits.copy_(gradient.mul_(mask))
    return torch.cat(losses)

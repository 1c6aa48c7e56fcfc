"""Isolated documents of packed rows: where they are, and how to attend within each without a loop over them.

Shapes: B batch, S sequence, T = B x S tokens, N heads, D head width, M documents of a bucket, L length of its longest.

Documents of like length are laid side by side as a batch: bucket i takes lengths in (2^(i-1), 2^i], so padding at
most doubles it, memory stays linear in S, and there are at most log2(S) + 1 calls of attention. Padding stands
behind each document, where causal attention never looks.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Span = tuple[int, int, int]
"""(row, start, end) of a document."""


def document_spans(starts_BS: Tensor) -> list[Span]:
    """The documents in order, covering every token; the first token of a row always starts one."""
    spans = []
    for row, starts in enumerate(starts_BS.cpu()):
        bounds = [0, *(i for i in starts.nonzero().flatten().tolist() if i), starts.shape[0]]
        spans += [(row, start, end) for start, end in itertools.pairwise(bounds)]
    return spans


@dataclass(frozen=True)
class Buckets:
    """Documents by length."""

    spans: Sequence[Span]
    gather: Sequence[Tensor]
    """For each bucket the tokens of its documents, numbered row x S + position, [M, L]; past an end, its last token."""
    place_T: Tensor
    """Where each token stands in all buckets' outputs strung together."""


def bucket_documents(spans: Sequence[Span], sequence: int, device: torch.device) -> Buckets:
    """Sort documents into buckets."""
    by_size: dict[int, list[Span]] = {}
    for span in spans:
        by_size.setdefault((span[2] - span[1] - 1).bit_length(), []).append(span)
    gather, offset = [], 0
    place_T = torch.empty(sum(end - start for _, start, end in spans), dtype=torch.int64)
    for _, bucket in sorted(by_size.items()):
        first_M = torch.tensor([row * sequence + start for row, start, _ in bucket])
        length_M = torch.tensor([end - start for _, start, end in bucket])
        longest = int(length_M.max())
        here_L = torch.arange(longest)
        tokens_ML = first_M[:, None] + torch.minimum(here_L, length_M[:, None] - 1)
        inside_ML = here_L < length_M[:, None]
        place_T[tokens_ML[inside_ML]] = offset + torch.arange(tokens_ML.numel()).view_as(tokens_ML)[inside_ML]
        gather.append(tokens_ML.to(device))
        offset += tokens_ML.numel()
    return Buckets(spans, gather, place_T.to(device))


def attend_in_buckets(
    attend: Callable[[Tensor, Tensor, Tensor], Tensor],
    q_BNSD: Tensor,
    k_BNSD: Tensor,
    v_BNSD: Tensor,
    buckets: Buckets,
) -> Tensor:
    """Apply causal `attend` ([M, N, L, D] each -> [M, N, L, D]) within each document; returns [B, N, S, D]."""
    B, N, S, D = q_BNSD.shape
    flat = [x.transpose(1, 2).reshape(B * S, N, D) for x in (q_BNSD, k_BNSD, v_BNSD)]
    outputs = []
    for tokens_ML in buckets.gather:
        q, k, v = (x[tokens_ML.flatten()].view(*tokens_ML.shape, N, D).transpose(1, 2) for x in flat)
        outputs.append(attend(q, k, v).transpose(1, 2).reshape(-1, N, D))
    return torch.cat(outputs)[buckets.place_T].view(B, S, N, D).transpose(1, 2)

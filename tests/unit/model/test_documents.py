from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_yuan.model.documents import attend_in_buckets, bucket_documents, document_spans

CPU = torch.device("cpu")


def starts_of(lengths: list[list[int]]) -> Tensor:
    starts = torch.zeros(len(lengths), sum(lengths[0]), dtype=torch.bool)
    for row, sizes in enumerate(lengths):
        for d in range(len(sizes)):
            starts[row, sum(sizes[:d])] = True
    return starts


def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def test_spans_cover_every_token_in_order() -> None:
    assert document_spans(starts_of([[3, 1, 4], [8]])) == [(0, 0, 3), (0, 3, 4), (0, 4, 8), (1, 0, 8)]
    assert document_spans(torch.zeros(1, 5, dtype=torch.bool)) == [(0, 0, 5)]  # a row's first token always starts one


@pytest.mark.parametrize("lengths", [[[8], [8]], [[3, 1, 4], [1, 1, 6]], [[1] * 8, [2, 2, 2, 2]], [[5, 3], [7, 1]]])
def test_attention_in_buckets_is_attention_within_each_document(lengths: list[list[int]]) -> None:
    random = torch.Generator().manual_seed(0)
    fast: list[Tensor] = []
    slow: list[Tensor] = []
    for _ in range(3):
        x = torch.randn(2, 3, 8, 4, generator=random)
        fast.append(x.clone().requires_grad_())
        slow.append(x.clone().requires_grad_())
    upstream = torch.randn(2, 3, 8, 4, generator=random)
    spans = document_spans(starts_of(lengths))
    found = attend_in_buckets(causal, *fast, bucket_documents(spans, 8, CPU))
    document_BS = starts_of(lengths).cumsum(dim=1)
    same_document = document_BS[:, None, :, None] == document_BS[:, None, None, :]
    mask = same_document & torch.ones(8, 8, dtype=torch.bool).tril()
    expected = F.scaled_dot_product_attention(*slow, attn_mask=mask)
    torch.testing.assert_close(found, expected)
    for tensor in (found, expected):
        tensor.backward(upstream)
    for a, b in zip(fast, slow, strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_few_calls_and_padding_that_at_most_doubles() -> None:
    random = torch.Generator().manual_seed(0)
    starts = torch.rand(4, 512, generator=random) < 0.1
    starts[1] = True  # a row of single tokens
    starts[2] = False  # a row of one document
    buckets = bucket_documents(document_spans(starts), 512, CPU)
    assert len(buckets.gather) <= 10
    assert sum(each.numel() for each in buckets.gather) < 2 * starts.numel()

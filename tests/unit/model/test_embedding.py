from __future__ import annotations

import torch

from megatron_yuan.model.embedding import TokenEmbedding


def test_a_token_that_occurs_often_gets_the_whole_of_its_gradient_in_bfloat16() -> None:
    embedding = TokenEmbedding(8, 4).to(torch.bfloat16)
    ids = torch.full((2, 2048), 3)
    embedding(ids).backward(torch.full((2, 2048, 4), 0.5, dtype=torch.bfloat16))
    assert embedding.weight.grad is not None
    assert embedding.weight.grad[3].tolist() == [2048.0] * 4
    assert not embedding.weight.grad[[0, 1, 2, 4, 5, 6, 7]].any()


def test_in_float32_it_is_torchs_embedding() -> None:
    embedding = TokenEmbedding(8, 4)
    embedding.weight.data.normal_()
    ids = torch.tensor([[1, 5, 1]])
    assert torch.equal(embedding(ids), embedding.weight[ids])

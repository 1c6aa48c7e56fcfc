"""Expert choice against the paper's formula, one expert after another."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from megatron_yuan.config.schema import ModelConfig
from megatron_yuan.model.moe.routers import Router, build_router

CONFIG = ModelConfig(num_layers=1, hidden_size=16, num_experts=4, moe_router="expert-choice", moe_router_topk=2)


def router_of(dtype: torch.dtype = torch.float32, **values: float) -> Router:
    router = build_router(dataclasses.replace(CONFIG, **values), layer=0)
    router.weight.data = torch.randn(router.weight.shape, generator=torch.Generator().manual_seed(2)).to(dtype)
    return router


def some_states(tokens: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(tokens, 16, generator=torch.Generator().manual_seed(3)).to(dtype)


def as_written(weight: Tensor, x_TH: Tensor, capacity: int) -> Tensor:
    """Weights [T, E], 0 where an expert did not take the token."""
    scores = (x_TH @ weight.t()).float().softmax(dim=1)
    taken = torch.zeros_like(scores)
    for e in range(scores.shape[1]):
        for t in scores[:, e].argsort(descending=True)[:capacity]:
            taken[t, e] = 1.0
    return scores * taken


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("tokens", "factor", "capacity"),
    [(10, 1.0, 5), (10, 2.0, 10), (10, 50.0, 10), (10, 0.25, 1), (1, 1.0, 1), (7, 1.0, 3), (3, 0.01, 1)],
)
def test_each_expert_takes_its_best_tokens_forward_and_backward(
    dtype: torch.dtype, tokens: int, factor: float, capacity: int
) -> None:
    results = []
    upstream = torch.randn(tokens, 4, generator=torch.Generator().manual_seed(5))
    for oracle in (False, True):
        router, x = router_of(dtype, moe_expert_capacity_factor=factor), some_states(tokens, dtype).requires_grad_()
        if oracle:
            weights_TE = as_written(router.weight, x, capacity)
        else:
            routing = router(x)
            weights_TE = routing.weights_TK
            assert routing.rows == 4 * capacity == int((routing.experts_TK >= 0).sum())
            assert torch.equal(routing.experts_TK >= 0, weights_TE > 0)
            assert (routing.experts_TK >= 0).sum(dim=0).tolist() == [capacity] * 4
        (weights_TE * upstream).sum().backward()
        results.append([weights_TE.detach(), x.grad, router.weight.grad])
    tolerance = {"atol": 1e-6, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 2e-2, "rtol": 2e-2}
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, **tolerance)


def test_where_all_scores_are_equal_every_expert_is_still_full() -> None:
    routing = router_of().choose(torch.zeros(8, 4))
    assert (routing.experts_TK >= 0).sum(dim=0).tolist() == [4] * 4


def test_a_later_token_can_take_an_earlier_ones_place() -> None:
    logits = torch.tensor([[1.0, 0, 0, 0], [0.9, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    before = router_of().choose(logits)
    logits[3, 0] = 5.0
    after = router_of().choose(logits)
    assert before.experts_TK[1, 0] == 0 and after.experts_TK[1, 0] == -1

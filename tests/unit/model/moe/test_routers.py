from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from megatron_yuan.config.schema import ModelConfig
from megatron_yuan.model.moe.routers import Router, attention, build_router
from megatron_yuan.model.moe.routers.attention import expert_attention

CONFIG = ModelConfig(
    num_layers=1,
    hidden_size=16,
    num_attention_heads=1,
    kv_channels=16,
    ffn_hidden_size=8,
    vocab_size=8,
    num_experts=6,
    moe_router="attention",
    moe_router_topk=2,
)


def router_of(kind: str, dtype: torch.dtype = torch.float32, **values: int) -> Router:
    router = build_router(dataclasses.replace(CONFIG, moe_router=kind, **values), layer=0)  # type: ignore[arg-type]
    weight = torch.randn(router.weight.shape, generator=torch.Generator().manual_seed(2))
    router.weight.data = weight.to(dtype)
    return router


def some_states(tokens: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(tokens, 16, generator=torch.Generator().manual_seed(3)).to(dtype)


def as_written(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The paper's formula, one expert of one token after another."""
    scores = [[((q[t, i] * k[t]).softmax(dim=0) * v[t]).sum() for i in range(q.shape[1])] for t in range(q.shape[0])]
    return torch.stack([torch.stack(row) for row in scores])


@pytest.mark.parametrize("scale", [0.0, 1.0, 40.0, 1e4])
@pytest.mark.parametrize("chunk", [1, 3 * 25, 2**18])
def test_expert_attention_is_the_formula_forward_and_backward(
    scale: float, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "CHUNK_ELEMENTS", chunk)
    random = torch.Generator().manual_seed(0)
    q, k, v, g = (torch.randn(7, 5, generator=random, dtype=torch.float64) for _ in range(4))
    fast, slow = ([(x * s).requires_grad_() for x, s in ((q, scale), (k, scale), (v, 1.0))] for _ in range(2))
    found, expected = expert_attention(*fast), as_written(*slow)
    torch.testing.assert_close(found, expected)
    found.backward(g)
    expected.backward(g)
    for a, b in zip(fast, slow, strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_extreme_scores_stay_finite_and_within_the_values() -> None:
    big = torch.tensor([[3e18, -3e18, 1.0, 0.0], [1e18, 1e18, 1e18, 1e18]])
    v = torch.tensor([[1.0, -2.0, 3.0, 4.0]] * 2)
    leaves = [big.clone().requires_grad_(), big.flip(1).clone().requires_grad_(), v.clone().requires_grad_()]
    scores = expert_attention(*leaves)
    assert scores.isfinite().all() and (scores >= -2).all() and (scores <= 4).all()
    scores.sum().backward()
    assert all(each.grad is not None and each.grad.isfinite().all() for each in leaves)


@pytest.mark.parametrize("kind", ["attention", "softmax", "noisy-top-k"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_tokens_routing_does_not_change_by_a_bit_when_all_others_change(kind: str, dtype: torch.dtype) -> None:
    router, x_TH = router_of(kind, dtype), some_states(9, dtype)
    before = router(x_TH)
    for t in range(9):
        others = torch.randn_like(x_TH) * 50
        others[t] = x_TH[t]
        after = router(others)
        for a, b in zip(before[:3], after[:3], strict=True):
            assert torch.equal(a[t], b[t])


@pytest.mark.parametrize("kind", ["attention", "softmax", "noisy-top-k"])
def test_another_tokens_loss_sends_no_gradient_into_a_token(kind: str) -> None:
    router, x_TH = router_of(kind), some_states(5).requires_grad_()
    router(x_TH).weights_TK[2, 0].backward()
    assert x_TH.grad is not None
    assert x_TH.grad[2].any() and not x_TH.grad[[0, 1, 3, 4]].any()


@pytest.mark.parametrize("kind", ["attention", "softmax", "noisy-top-k"])
@pytest.mark.parametrize("topk", [1, 2, 6])
def test_weights_are_the_softmax_over_the_chosen_scores_and_sum_to_one(kind: str, topk: int) -> None:
    routing = router_of(kind, torch.bfloat16, moe_router_topk=topk)(some_states(20, torch.bfloat16))
    chosen = routing.logits_TE.gather(1, routing.experts_TK)
    assert routing.logits_TE.dtype == routing.weights_TK.dtype == torch.float32
    assert torch.equal(chosen, routing.logits_TE.topk(topk).values)
    torch.testing.assert_close(routing.weights_TK, chosen.softmax(dim=1))


def test_a_saturated_softmax_chooses_as_the_published_code_does() -> None:
    """Far behind the best, all probabilities are 0 in float32: which comes second is then torch's choice, weight 0."""
    logits = torch.tensor([[500.0, 0.0, 100.0, 50.0, 1.0, 2.0], [0.0, 300.0, 299.0, 0.0, 0.0, 0.0]])
    routing = router_of("softmax").choose(logits)
    assert torch.equal(routing.experts_TK, logits.softmax(dim=1).topk(2).indices)
    assert routing.weights_TK[0].tolist() == [1.0, 0.0]
    torch.testing.assert_close(routing.weights_TK[1], torch.tensor([1.0, 0.0]).softmax(dim=0))


def test_equal_scores_give_different_experts_of_equal_weight_the_same_for_every_token() -> None:
    routing = router_of("attention").choose(torch.zeros(5, 6))
    assert (routing.experts_TK[:, 0] != routing.experts_TK[:, 1]).all()
    assert (routing.experts_TK == routing.experts_TK[0]).all()
    assert (routing.weights_TK == 0.5).all()

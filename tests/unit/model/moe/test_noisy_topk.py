"""Noisy top-k gating against the paper's formulas, written out token by token."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from megatron_yuan.config.schema import ModelConfig
from megatron_yuan.model.moe.routers import build_router
from megatron_yuan.model.moe.routers.noisy_topk import NOISE_FLOOR, NoisyTopKRouter
from megatron_yuan.model.randomness import generator

CONFIG = ModelConfig(num_layers=1, hidden_size=16, num_experts=6, moe_router="noisy-top-k", moe_router_topk=2)
KEYS = (11, 12)  # of two samples


def router_of(dtype: torch.dtype = torch.float32, **values: float) -> NoisyTopKRouter:
    router = build_router(dataclasses.replace(CONFIG, **values), layer=3)
    assert isinstance(router, NoisyTopKRouter)
    router.weight.data = torch.randn(router.weight.shape, generator=torch.Generator().manual_seed(2)).to(dtype) * 0.3
    return router


def some_states(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2 * 5, 16, generator=torch.Generator().manual_seed(3)).to(dtype)


def normal_cdf(x: Tensor) -> Tensor:
    return 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def as_written(weight: Tensor, x_TH: Tensor, k: int, w_importance: float, w_load: float) -> tuple[Tensor, Tensor]:
    """(G [T, E], loss), one token and one expert after another."""
    E = weight.shape[0] // 2
    noise = torch.cat(
        [torch.randn(5, E, generator=generator(torch.device("cpu"), key, 3, "router noise")) for key in KEYS]
    )
    gates, chances = [], []
    for t, x in enumerate(x_TH):
        clean, raw = (weight[:E] @ x).float(), (weight[E:] @ x).float()
        scale = torch.nn.functional.softplus(raw) + NOISE_FLOOR
        noisy = clean + noise[t] * scale
        kept = noisy.argsort(descending=True)[:k]
        gates.append(torch.zeros(E).index_put((kept,), noisy[kept].softmax(dim=0)))
        chance = []
        for i in range(E):
            others = torch.cat((noisy[:i], noisy[i + 1 :]))
            rival = others.sort(descending=True).values[k - 1]
            chance.append(normal_cdf((clean[i] - rival) / scale[i]))
        chances.append(torch.stack(chance))
    loss = torch.zeros(())
    for weight_of, sums in ((w_importance, torch.stack(gates).sum(0)), (w_load, torch.stack(chances).sum(0))):
        loss = loss + weight_of * ((sums - sums.mean()) ** 2).mean() / sums.mean() ** 2
    return torch.stack(gates), loss


def dense(experts_TK: Tensor, weights_TK: Tensor, num_experts: int) -> Tensor:
    return torch.zeros(len(experts_TK), num_experts).scatter(1, experts_TK, weights_TK)


@pytest.mark.parametrize("topk", [1, 2, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gates_losses_and_gradients_are_the_papers(topk: int, dtype: torch.dtype) -> None:
    results = []
    upstream = torch.randn(10, 6, generator=torch.Generator().manual_seed(5))
    for oracle in (False, True):
        router = router_of(dtype, moe_router_topk=topk, moe_importance_loss_coeff=0.3, moe_load_loss_coeff=0.7)
        x = some_states(dtype).requires_grad_()
        if oracle:
            gates, loss = as_written(router.weight, x, topk, 0.3, 0.7)
        else:
            routing = router(x, KEYS)
            gates, loss = dense(routing.experts_TK, routing.weights_TK, 6), routing.loss
        ((gates * upstream).sum() + loss).backward()
        results.append([gates.detach(), loss.detach(), x.grad, router.weight.grad])
    tolerance = {"atol": 1e-5, "rtol": 1e-4} if dtype == torch.float32 else {"atol": 2e-2, "rtol": 2e-2}
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, **tolerance)


def test_without_keys_there_is_no_noise_and_no_loss() -> None:
    router, x = router_of(), some_states()
    routing = router(x)
    assert routing.loss is None
    torch.testing.assert_close(routing.logits_TE, x @ router.weight[:6].t())
    assert torch.equal(routing.experts_TK, routing.logits_TE.topk(2).indices)


def test_a_samples_noise_is_its_own_whatever_stands_beside_it() -> None:
    router, x = router_of(), some_states()
    both, second = router(x, KEYS), router(x[5:], KEYS[1:])
    assert torch.equal(both.logits_TE[5:], second.logits_TE)
    assert not torch.equal(both.logits_TE, router(x, (11, 13)).logits_TE)


def test_when_every_expert_is_chosen_the_load_is_even() -> None:
    loss = router_of(moe_router_topk=6, moe_importance_loss_coeff=0.0)(some_states(), KEYS).loss
    assert loss is not None and float(loss.detach()) == 0.0


def test_from_its_initial_zeros_the_noise_alone_chooses_and_all_experts_learn() -> None:
    router = router_of()
    router.weight.data.zero_()
    routing = router(some_states(), KEYS)
    assert routing.loss is not None and routing.experts_TK.unique().numel() > 2
    (routing.loss + routing.weights_TK.square().sum()).backward()
    assert (
        router.weight.grad is not None and router.weight.grad.isfinite().all() and router.weight.grad[:6].any(1).all()
    )

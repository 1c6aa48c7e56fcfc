"""The fast experts against the loop over them, whatever the share each gets."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from megatron_yuan.config.schema import ModelConfig
from megatron_yuan.model import product as products
from megatron_yuan.model.moe.dispatch import permute, plan_dispatch, unpermute
from megatron_yuan.model.moe.experts import Experts

E, H = 5, 8
CHOICES = {
    "even": [[t % E, (t + 1) % E] for t in range(10)],
    "experts without rows": [[0, 3], [3, 0], [0, 3]],
    "first and last without rows": [[1, 2], [2, 3], [3, 1]],
    "one expert gets every token": [[4, t % 4] for t in range(12)],
    "one token": [[2, 1]],
    "top 1, all to one": [[3]] * 6,
    "all of all": [[4, 0, 2, 1, 3]] * 3,
    "tokens without experts": [[-1, -1, -1], [2, -1, 0], [-1, 4, 2], [-1, -1, -1]],
    "no token at all with the first": [[-1, 1], [2, -1]],
}


def experts_of(kind: str) -> Experts:
    config = ModelConfig(
        num_layers=1,
        hidden_size=H,
        num_attention_heads=1,
        kv_channels=8,
        ffn_hidden_size=6,
        vocab_size=8,
        num_experts=E,
        moe_experts=kind,  # type: ignore[arg-type]
    )
    experts = Experts(E, 6, config)
    random = torch.Generator().manual_seed(0)
    for parameter in experts.parameters():
        parameter.data.normal_(0, 0.5, generator=random)
    return experts


def mixed(experts: Experts, x_TH: Tensor, weights_TK: Tensor, experts_TK: Tensor) -> Tensor:
    dispatch = plan_dispatch(experts_TK, E, int((experts_TK >= 0).sum()))
    rows = experts(permute(x_TH, dispatch), weights_TK.flatten()[dispatch.pair_R], dispatch.ends_E)
    return unpermute(rows, dispatch)


@pytest.mark.parametrize("choice", CHOICES.values(), ids=CHOICES.keys())
def test_grouped_experts_are_the_looped_ones_forward_and_backward(choice: list[list[int]]) -> None:
    experts_TK = torch.tensor(choice)
    random = torch.Generator().manual_seed(1)
    x_TH, upstream = (torch.randn(len(choice), H, generator=random) for _ in range(2))
    weights_TK = torch.rand(experts_TK.shape, generator=random)
    results = []
    for kind, keep_h in (("grouped", True), ("grouped", False), ("looped", True)):
        experts = experts_of(kind)
        experts.keep_h = keep_h
        x, p = x_TH.clone().requires_grad_(), weights_TK.clone().requires_grad_()
        y = mixed(experts, x, p, experts_TK)
        y.backward(upstream)
        results.append([y.detach(), x.grad, p.grad, experts.gate_up.grad, experts.down.grad])
    for found, again, expected in zip(*results, strict=True):
        assert torch.equal(found, again)  # what is made again in backward is what was there
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    idle = sorted(set(range(E)) - set(experts_TK.flatten().tolist()))
    assert not results[0][3][idle].any() and not results[0][4][idle].any()


@pytest.mark.parametrize("tiles", [True, False])
@pytest.mark.parametrize("dtype, step", [(torch.float32, 1e-6), (torch.bfloat16, 0.02)])
@pytest.mark.parametrize("choice", CHOICES.values(), ids=CHOICES.keys())
def test_in_inference_experts_give_what_they_give_in_training(
    choice: list[list[int]], dtype: torch.dtype, step: float, tiles: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "_has_tiles", lambda: tiles)
    experts, experts_TK = experts_of("grouped").to(dtype), torch.tensor(choice)
    random = torch.Generator().manual_seed(1)
    x_TH = torch.randn(len(choice), H, generator=random).to(dtype)
    weights_TK = torch.rand(experts_TK.shape, generator=random).to(dtype)
    expected = mixed(experts, x_TH, weights_TK, experts_TK).detach()
    with torch.inference_mode():
        found = mixed(experts, x_TH, weights_TK, experts_TK)
    torch.testing.assert_close(found, expected, atol=step, rtol=step)


@torch.inference_mode()
def test_a_token_alone_has_its_experts_outputs_added_up_before_they_are_rounded() -> None:
    experts = experts_of("grouped").to(torch.bfloat16)
    x_1H = torch.randn(1, H, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    weights = [0.5, 0.25, 0.125, 0.0625, 0.0625]
    outputs = [experts.of_one(x_1H, [e], [p]).float() for e, p in enumerate(weights)]
    assert torch.equal(experts.of_one(x_1H, list(range(E)), weights), sum(outputs).to(torch.bfloat16))


def test_each_token_gets_the_weighted_sum_of_its_own_experts() -> None:
    experts, experts_TK = experts_of("looped"), torch.tensor(CHOICES["tokens without experts"])
    random = torch.Generator().manual_seed(1)
    x_TH, weights_TK = torch.randn(len(experts_TK), H, generator=random), torch.rand(experts_TK.shape, generator=random)
    expected = torch.zeros_like(x_TH)
    for t, choices in enumerate(experts_TK.tolist()):
        for k, e in enumerate(choices):
            if e >= 0:
                gate, up = (experts.gate_up[e] @ x_TH[t]).chunk(2)
                expected[t] += weights_TK[t, k] * (experts.down[e] @ (torch.nn.functional.silu(gate) * up))
    for kind in ("looped", "grouped"):
        torch.testing.assert_close(mixed(experts_of(kind), x_TH, weights_TK, experts_TK), expected)


def test_the_order_of_tokens_changes_no_token() -> None:
    experts, order = experts_of("grouped"), torch.tensor([4, 2, 0, 1, 3])
    random = torch.Generator().manual_seed(1)
    x_TH, weights_TK = torch.randn(5, H, generator=random), torch.rand(5, 2, generator=random)
    experts_TK = torch.tensor([[0, 1], [1, 2], [4, 0], [2, 1], [1, 0]])
    whole = mixed(experts, x_TH, weights_TK, experts_TK)
    torch.testing.assert_close(mixed(experts, x_TH[order], weights_TK[order], experts_TK[order]), whole[order])


def test_bfloat16_experts_are_near_the_float32_ones() -> None:
    exact = experts_of("grouped")
    rounded = copy.deepcopy(exact).bfloat16()
    random = torch.Generator().manual_seed(1)
    x_TH, weights_TK = torch.randn(10, H, generator=random), torch.rand(10, 2, generator=random)
    experts_TK = torch.tensor(CHOICES["even"])
    found = mixed(rounded, x_TH.bfloat16(), weights_TK.bfloat16(), experts_TK)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), mixed(exact, x_TH, weights_TK, experts_TK), atol=0.1, rtol=0.05)


def test_permuting_back_is_the_adjoint_of_permuting() -> None:
    dispatch = plan_dispatch(torch.tensor([[0, 3], [3, 1], [0, 1]]), E)
    assert dispatch.ends_E.tolist() == [2, 4, 4, 6, 6]
    assert dispatch.token_R.tolist() == [0, 2, 1, 2, 0, 1]  # by expert, tokens in order within each
    random = torch.Generator().manual_seed(1)
    x, y = (torch.randn(n, H, generator=random, dtype=torch.float64, requires_grad=True) for n in (3, 6))
    torch.testing.assert_close((permute(x, dispatch) * y).sum(), (x * unpermute(y, dispatch)).sum())
    assert torch.autograd.gradcheck(lambda each: permute(each, dispatch), x)
    assert torch.autograd.gradcheck(lambda each: unpermute(each, dispatch), y)


def test_where_gradients_are_summed_over_microbatches_each_experts_part_is_added_once() -> None:
    experts_TK = torch.tensor(CHOICES["experts without rows"])
    x_TH = torch.randn(len(experts_TK), H, generator=torch.Generator().manual_seed(1))
    alone, summed = experts_of("grouped"), experts_of("grouped")
    for parameter in summed.parameters():
        parameter.main_grad = torch.ones_like(parameter)  # type: ignore[attr-defined]  # of an earlier microbatch
    for experts in (alone, summed):
        mixed(experts, x_TH, torch.full(experts_TK.shape, 0.5), experts_TK).sum().backward()
    for one, other in zip(alone.parameters(), summed.parameters(), strict=True):
        assert other.grad_added_to_main_grad  # type: ignore[attr-defined]  # and DDP leaves .grad aside
        torch.testing.assert_close(other.main_grad, one.grad + 1)  # type: ignore[attr-defined,operator]

"""Balance losses by hand, and how they enter the gradient."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from megatron_yuan.config.schema import ModelConfig
from megatron_yuan.model.moe.balance import Balance, attach, balance_loss, move_bias, switch_loss
from megatron_yuan.model.moe.routers import Routing, build_router

CONFIG = ModelConfig(num_layers=1, hidden_size=8, num_experts=4, moe_router="softmax", moe_router_topk=2)


def routing_of(logits: torch.Tensor) -> Routing:
    return build_router(CONFIG, 0).choose(logits)


def no_tally(layer: int, load: torch.Tensor) -> torch.Tensor:
    raise AssertionError("a loss of the microbatch asked for the global batch's load")


def test_the_switch_loss_is_one_where_all_is_even_and_e_where_one_expert_has_everything() -> None:
    even = switch_loss(torch.zeros(6, 4), torch.tensor([3.0, 3.0, 3.0, 3.0]))
    collapsed = switch_loss(torch.tensor([[50.0, 0.0, 0.0, 0.0]]).repeat(6, 1), torch.tensor([12.0, 0.0, 0.0, 0.0]))
    assert float(even) == pytest.approx(1.0) and float(collapsed) == pytest.approx(4.0)


def test_the_switch_loss_is_its_formula() -> None:
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    routing = routing_of(logits)
    load = torch.bincount(routing.experts_TK.flatten(), minlength=4).float()
    config = dataclasses.replace(CONFIG, moe_router_load_balancing_type="aux_loss", moe_aux_loss_coeff=0.5)
    loss = balance_loss(config, 0, routing, load, Balance(torch.tensor(5.0), no_tally))
    expected = torch.zeros(())
    for e in range(4):
        f = sum(e in row for row in routing.experts_TK.tolist()) / (5 * 2)
        expected = expected + 0.5 * 4 * f * sum(row.softmax(0)[e] for row in logits) / 5
    assert loss is not None
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(*(torch.autograd.grad(each, logits, retain_graph=True)[0] for each in (loss, expected)))


def test_the_global_loss_takes_its_shares_from_the_tally_and_probabilities_from_the_microbatch() -> None:
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    config = dataclasses.replace(CONFIG, moe_router_load_balancing_type="global_aux_loss", moe_aux_loss_coeff=1.0)
    asked = []

    def tally(layer: int, load: torch.Tensor) -> torch.Tensor:
        asked.append((layer, load.tolist()))
        return torch.tensor([30.0, 10.0, 0.0, 0.0])

    loss = balance_loss(config, 7, routing_of(logits), torch.ones(4), Balance(torch.tensor(5.0), tally))
    mean = logits.softmax(1).mean(0)
    assert asked == [(7, [1.0] * 4)]
    assert loss is not None and float(loss) == pytest.approx(float(4 * (0.75 * mean[0] + 0.25 * mean[1])))


def test_the_z_loss_is_the_mean_square_of_logsumexp() -> None:
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    config = dataclasses.replace(CONFIG, moe_z_loss_coeff=0.1)
    loss = balance_loss(config, 0, routing_of(logits), torch.ones(4), Balance(torch.tensor(5.0), no_tally))
    expected = 0.1 * sum(float(row.exp().sum().log()) ** 2 for row in logits) / 5
    assert loss is not None and float(loss) == pytest.approx(expected)


def test_by_default_there_is_no_loss() -> None:
    routing = routing_of(torch.randn(5, 4))
    assert balance_loss(CONFIG, 0, routing, torch.ones(4), Balance(torch.tensor(5.0), no_tally)) is None


def test_an_attached_loss_changes_no_value_and_is_differentiated_with_weight_one() -> None:
    x = torch.randn(3, requires_grad=True)
    y = torch.randn(3, requires_grad=True)
    out = attach(x * 2, (y**2).sum())
    assert torch.equal(out, x * 2)
    (7 * out.sum()).backward()
    assert torch.equal(x.grad, torch.full((3,), 14.0)) and torch.allclose(y.grad, 2 * y)


def test_the_bias_moves_towards_experts_with_less_than_the_mean_and_decides_the_choice_alone() -> None:
    config = dataclasses.replace(CONFIG, moe_router_enable_expert_bias=True)
    router = build_router(config, 0)
    assert router.expert_bias is not None
    move_bias(router.expert_bias, torch.tensor([9, 1, 5, 5]), rate=0.25)
    assert router.expert_bias.tolist() == [-0.25, 0.25, 0.0, 0.0]
    logits = torch.tensor([[2.0, 1.9, 1.8, -9.0]])
    router.expert_bias.data = torch.tensor([-1.0, 0.0, 0.0, 0.0])
    routing = router.choose(logits)
    assert sorted(routing.experts_TK[0].tolist()) == [1, 2]
    torch.testing.assert_close(routing.weights_TK[0].sort().values, torch.tensor([1.8, 1.9]).softmax(0))


def test_the_bias_is_float32_in_a_bfloat16_model_and_has_no_gradient() -> None:
    router = build_router(dataclasses.replace(CONFIG, moe_router_enable_expert_bias=True), 0).bfloat16()
    assert router.weight.dtype == torch.bfloat16
    assert router.expert_bias is not None and router.expert_bias.dtype == torch.float32
    assert not router.expert_bias.requires_grad and "expert_bias" in dict(router.named_parameters())

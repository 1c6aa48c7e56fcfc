"""The whole layer: shared experts beside chosen ones, what it counts, and every router in it."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from megatron_yuan.config.schema import ModelConfig
from megatron_yuan.model.context import TokenContext
from megatron_yuan.model.moe.layer import MoELayer
from megatron_yuan.model.moe.routers import ROUTERS

CONFIG = ModelConfig(num_layers=1, hidden_size=16, ffn_hidden_size=8, num_experts=4, moe_router_topk=2)
NOTHING = TokenContext(torch.empty(0), torch.empty(0))


def layer_of(**values: object) -> MoELayer:
    layer = MoELayer(dataclasses.replace(CONFIG, **values), 0)  # type: ignore[arg-type]
    random = torch.Generator().manual_seed(0)
    for _, parameter in sorted(layer.named_parameters()):
        parameter.data.normal_(0, 0.3, generator=random)
    return layer


@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize("shared", [0, 1, 3])
def test_the_output_is_the_weighted_sum_of_chosen_experts_and_the_sum_of_shared_ones(router: str, shared: int) -> None:
    layer = layer_of(moe_router=router, num_shared_experts=shared)
    x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1))
    found, _ = layer(x, NOTHING)
    rows = x.flatten(0, 1)
    routing = layer.router(rows)

    def expert(gate_up: torch.Tensor, down: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        gate, up = (gate_up @ row).chunk(2)
        return down @ (F.silu(gate) * up)

    expected = torch.zeros_like(rows)
    for t, row in enumerate(rows):
        for e, weight in zip(routing.experts_TK[t].tolist(), routing.weights_TK[t], strict=True):
            if e >= 0:
                expected[t] += weight * expert(layer.experts.gate_up[e], layer.experts.down[e], row)
        if layer.shared_experts is not None:
            gates, ups = layer.shared_experts.gate_up[0].chunk(2)
            for s in range(shared):  # the wide network, taken apart into S experts
                part = slice(8 * s, 8 * s + 8)
                gate_up = torch.cat((gates[part], ups[part]))
                expected[t] += expert(gate_up, layer.shared_experts.down[0][:, part], row)
    torch.testing.assert_close(found.flatten(0, 1), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("router", sorted(set(ROUTERS) - {"expert-choice"}))
@pytest.mark.parametrize("chosen", [1, 2, 4])
def test_a_token_alone_in_generation_gets_what_it_gets_among_others(router: str, chosen: int) -> None:
    layer = layer_of(moe_router=router, moe_router_topk=chosen, num_shared_experts=1)
    x = torch.randn(1, 5, 16, generator=torch.Generator().manual_seed(1))
    together = layer(x, NOTHING)[0]
    with torch.inference_mode():
        for t in range(5):
            alone, stats = layer(x[:, t : t + 1], dataclasses.replace(NOTHING, counted=False))
            torch.testing.assert_close(alone, together[:, t : t + 1], atol=1e-6, rtol=1e-6)
            assert stats is None  # nobody asked


@pytest.mark.parametrize("router", ROUTERS)
def test_its_counts_are_those_of_a_recount(router: str) -> None:
    layer = layer_of(moe_router=router)
    x = torch.randn(2, 7, 16, generator=torch.Generator().manual_seed(1))
    _, stats = layer(x, NOTHING)
    routing = layer.router(x.flatten(0, 1))
    together = torch.zeros(4, 4)
    for row in routing.experts_TK.tolist():
        visited = [e for e in row if e >= 0]
        for a in visited:
            for b in visited:
                together[a, b] += 1
    assert torch.equal(stats.coactivation_EE, together)
    assert torch.equal(stats.load_E, together.diagonal())
    top = routing.logits_TE.softmax(1).sort(descending=True).values
    torch.testing.assert_close(stats.margin, (top[:, 0] - top[:, 1]).sum())


@pytest.mark.parametrize("experts", ["grouped", "looped"])
def test_shared_experts_learn_as_if_they_were_plain_ones(experts: str) -> None:
    layer = layer_of(num_shared_experts=2, moe_experts=experts)
    x = torch.randn(1, 5, 16, generator=torch.Generator().manual_seed(1))
    layer(x, NOTHING)[0].square().sum().backward()
    weights = [p.detach().clone().requires_grad_() for p in layer.shared_experts.parameters()]  # type: ignore[union-attr]
    rows = x[0]
    gate, up = F.linear(rows, weights[0][0]).chunk(2, dim=1)
    routed = layer(x, NOTHING)[0][0].detach() - layer.shared_experts(rows).detach()  # type: ignore[misc]
    (routed + F.linear(F.silu(gate) * up, weights[1][0])).square().sum().backward()
    for mine, theirs in zip(layer.shared_experts.parameters(), weights, strict=True):  # type: ignore[union-attr]
        torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-5, rtol=1e-4)


def test_with_one_expert_alone_the_margin_is_nothing() -> None:
    layer = layer_of(num_experts=1, moe_router_topk=1)
    _, stats = layer(torch.randn(1, 3, 16), NOTHING)
    assert float(stats.margin) == 0.0 and stats.load_E.tolist() == [3.0]

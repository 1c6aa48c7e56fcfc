"""The mixture-of-experts layer alone: forward and backward, by part, beside a peer's and the measured GEMM peak.

Shapes: T tokens, K chosen, H hidden, E experts, R = T x K rows.

Weights' gradients go where training puts them, into float32 sums, or are made in the weights' own type. "Real" routing
is the layer's own router on normal states; "forced" routing sends every expert equally many tokens, which no router
does: it shows what unevenness costs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from megatron_yuan.config.schema import Config, ModelConfig
from megatron_yuan.model.context import TokenContext
from megatron_yuan.model.initialize import initialize
from megatron_yuan.model.moe.dispatch import permute, plan_dispatch, unpermute
from megatron_yuan.model.moe.layer import MoELayer
from megatron_yuan.model.moe.routers import Routing
from megatron_yuan.planning.accounting import TRAINING_PASSES, forward_flops

NO_CONTEXT = TokenContext(torch.empty(0), torch.empty(0))


@dataclass
class LayerBench:
    """A layer with its input, and the gradient that comes back to its output."""

    layer: MoELayer
    x_1TH: Tensor
    upstream_1TH: Tensor

    def forward_backward(self) -> None:
        """The whole layer, its router included."""
        self.layer.zero_grad(set_to_none=True)
        x = self.x_1TH.detach().requires_grad_()
        self.layer(x, NO_CONTEXT)[0].backward(self.upstream_1TH)

    def experts_alone(self) -> Callable[[], None]:
        """All but the router: dispatch, experts, combine, for a routing that is given."""
        layer, routing = self.layer, self.routing

        def action() -> None:
            layer.zero_grad(set_to_none=True)
            leaf = self.x_1TH[0].detach().requires_grad_()
            weights = routing.weights_TK.detach().requires_grad_()
            layer.mix(leaf, routing._replace(weights_TK=weights)).backward(self.upstream_1TH[0])

        return action

    @property
    def routing(self) -> Routing:
        """What the layer's router says of the input."""
        with torch.no_grad():
            return self.layer.router(self.x_1TH[0])

    @property
    def imbalance(self) -> float:
        """Busiest expert over the mean one, by the rows that are computed."""
        routing = self.routing
        ends_E = plan_dispatch(routing.experts_TK, self.layer.router.num_experts, routing.rows).ends_E
        load_E = ends_E.diff(prepend=ends_E.new_zeros(1))
        return float(load_E.max() / load_E.float().mean())

    def parts(self) -> dict[str, Callable[[], None]]:
        """Forward and backward of each part by itself, on what the others give it."""
        layer, x_TH = self.layer, self.x_1TH[0]
        routing = self.routing
        plan = plan_dispatch(routing.experts_TK, layer.router.num_experts, routing.rows)
        weights_R = routing.weights_TK.to(x_TH.dtype).flatten()[plan.pair_R]
        rows_RH = permute(x_TH, plan)
        upstream_TH = self.upstream_1TH[0]
        upstream_RH, upstream_TK = permute(upstream_TH, plan), torch.ones_like(routing.weights_TK)

        def route() -> None:
            layer.router(x_TH.detach().requires_grad_()).weights_TK.backward(upstream_TK)

        def dispatch() -> None:
            fresh = plan_dispatch(routing.experts_TK, layer.router.num_experts, routing.rows)
            permute(x_TH.detach().requires_grad_(), fresh).backward(upstream_RH)

        def experts() -> None:
            leaves = rows_RH.detach().requires_grad_(), weights_R.detach().requires_grad_()
            layer.experts(*leaves, plan.ends_E).backward(upstream_RH)

        def combine() -> None:
            unpermute(rows_RH.detach().requires_grad_(), plan).backward(upstream_TH)

        parts = {"route": route, "dispatch": dispatch, "experts": experts, "combine": combine}
        shared = layer.shared_experts
        if shared is not None:
            parts["shared experts"] = lambda: shared(x_TH.detach().requires_grad_()).backward(upstream_TH)
        return parts


def layer_bench(
    config: Config, dtype: torch.dtype, device: torch.device, forced: bool, float32_sums: bool = True
) -> LayerBench:
    """The layer of `config` on one microbatch's number of random states.

    `float32_sums`: gradients are added into float32 sums, as in training; else they are made in `dtype`.
    """
    layer = MoELayer(config.model, 0).to(dtype)
    initialize(layer, config.model, config.training.seed)
    layer.to(device)
    for parameter in layer.parameters() if float32_sums else ():
        parameter.main_grad = torch.zeros_like(parameter, dtype=torch.float32)  # type: ignore[attr-defined]
    tokens = config.training.micro_batch_size * config.data.seq_length
    random = torch.Generator().manual_seed(config.training.seed)
    states = torch.randn(2, 1, tokens, config.model.hidden_size, generator=random).to(device, dtype)
    if forced:
        layer.router.register_forward_hook(force_balance)
    return LayerBench(layer, states[0], states[1])


def force_balance(_module: nn.Module, _inputs: Sequence[object], routing: Routing) -> Routing:
    """Send pair n of as many as name an expert to expert n mod E, with the weights as they are."""
    E = routing.logits_TE.shape[1]
    named_TK = routing.experts_TK >= 0
    nth_TK = named_TK.flatten().cumsum(0).view_as(named_TK) - 1
    return routing._replace(experts_TK=torch.where(named_TK, nth_TK % E, -1))


def flops_by_extent(model: ModelConfig, tokens: int) -> dict[str, int]:
    """FLOPs of forward and backward of one layer: of the routed "experts", and of the whole "layer"."""
    flops = forward_flops(replace(model, num_layers=1), 1)
    routed = forward_flops(replace(model, num_layers=1, num_shared_experts=0), 1).experts
    of_token = {"experts": routed, "layer": flops.router + flops.experts}
    return {extent: TRAINING_PASSES * each * tokens for extent, each in of_token.items()}

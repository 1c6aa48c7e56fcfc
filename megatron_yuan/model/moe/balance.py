"""Losses that keep experts equally busy, and the bias that does so without a loss. All are off unless asked for.

Shapes: T tokens of a microbatch, E experts, K chosen, L layers.

Switch loss (Fedus et al. 2021, arXiv 2101.03961, eq. 4):  E sum_e f_e P_e, where P_e is the mean over the microbatch's
    tokens of expert e's probability, and f_e its share of what was routed: in this microbatch ("aux_loss"), or in all
    microbatches of all replicas from the step's first up to and including this one ("global_aux_loss"). f is a count,
    so the gradient goes through P alone. 1 where all is even, E where one expert has everything.
z-loss (Zoph et al. 2022, arXiv 2202.08906, eq. 5):  mean over tokens of logsumexp(logits)^2.
Router's own: noisy_topk.py.
Expert bias (Wang et al. 2024, arXiv 2408.15664):  after each step b_e += rate x sign(mean load - load of e).

What is minimised in a step with microbatches m, each of n_m tokens with loss, CE_m their summed cross entropies:

    sum_m (CE_m + n_m sum over layers of loss_m) / sum_m n_m

so a loss weighs the same whatever the number of microbatches, replicas and stages. It enters where it is made, with
gradient n_m: the backward pass of the summed cross entropy starts at 1 wherever it starts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_yuan.config.schema import ModelConfig
from megatron_yuan.model.moe.routers.base import Routing


@dataclass(frozen=True)
class Balance:
    """What balance losses need to know of the microbatch at hand beyond its tokens."""

    tokens: Tensor
    """n_m: how many of them have a loss."""
    tally: Callable[[int, Tensor], Tensor]
    """(layer, load [E] of this microbatch) -> load of that layer in all microbatches so far, over all replicas.

    Asked again for the same layer (recomputation) it answers the same.
    """


def balance_loss(config: ModelConfig, layer: int, routing: Routing, load_E: Tensor, balance: Balance) -> Tensor | None:
    """The weighted sum of the losses that `config` asks for, of one layer and microbatch; None if it asks for none."""
    losses = [] if routing.loss is None else [routing.loss]
    if config.moe_router_load_balancing_type != "none":
        if config.moe_router_load_balancing_type == "global_aux_loss":
            load_E = balance.tally(layer, load_E)
        losses.append(config.moe_aux_loss_coeff * switch_loss(routing.logits_TE, load_E))
    if config.moe_z_loss_coeff > 0:
        losses.append(config.moe_z_loss_coeff * routing.logits_TE.logsumexp(dim=-1).square().mean())
    return torch.stack(losses).sum() if losses else None


def switch_loss(logits_TE: Tensor, load_E: Tensor) -> Tensor:
    """E sum_e f_e P_e, f being the shares of `load` [E]."""
    share_E = load_E.to(logits_TE.dtype) / load_E.sum()
    return load_E.numel() * (share_E * logits_TE.softmax(dim=-1).mean(dim=0)).sum()


def attach(x: Tensor, loss: Tensor) -> Tensor:
    """`x`, unchanged; when its gradient is taken, so is that of the scalar `loss`, with weight 1."""
    return _Attach.apply(x, loss)


class _Attach(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, loss: Tensor) -> Tensor:
        ctx.save_for_backward(loss)
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
        (loss,) = ctx.saved_tensors
        return grad, torch.ones_like(loss)


@torch.no_grad()
def move_bias(bias_E: Tensor, load_E: Tensor, rate: float) -> None:
    """Make an expert that had less than the mean load likelier to be chosen, and one that had more less likely."""
    load_E = load_E.to(bias_E)
    bias_E += rate * torch.sign(load_E.mean() - load_E)

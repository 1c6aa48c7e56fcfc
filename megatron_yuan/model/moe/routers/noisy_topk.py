"""Noisy top-k gating (Shazeer et al. 2017, arXiv 1701.06538, section 2.1 and appendix A).

Shapes: B batch, S sequence, T = B x S tokens, H hidden, E experts, K chosen.

    H(x)_i = (x W_g)_i + N(0, 1) s_i,   s_i = softplus((x W_noise)_i) + 0.01,   G(x) = softmax over the top k of H(x)

Noise is for training alone; without it H is x W_g. Two losses of sums over a microbatch's tokens keep experts busy:

    importance  w CV^2(sum_x G(x)_i)        how much weight each expert gets
    load        w CV^2(sum_x P(x, i)),      P(x, i) = Phi((x W_g)_i - kth_excluding(H(x), k, i)) / s_i)

P is the chance that expert i is among the k when its noise alone is drawn anew: a smooth count of its tokens.
CV is the standard deviation over experts divided by the mean. The 0.01 is the authors' code's, lest s vanish.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_yuan.model.moe.routers.base import Router, Routing
from megatron_yuan.model.product import product
from megatron_yuan.model.randomness import generator

NOISE_FLOOR = 1e-2


class NoisyTopKRouter(Router):
    """Rows of the weight: E of W_g, E of W_noise; both begin as zeros, so that at first the noise alone chooses."""

    rows_per_expert = 2

    def logits(self, x_TH: Tensor) -> Tensor:
        """x W_g [T, E], without noise."""
        return product(x_TH, self.weight[: self.num_experts]).float()

    def route(self, x_TH: Tensor, sample_keys: Sequence[int] | None) -> Routing:
        """In training with noise, keyed by sample and layer, and with the two losses."""
        if sample_keys is None:
            return super().route(x_TH, None)
        clean_TE, raw_TE = product(x_TH, self.weight).float().chunk(2, dim=-1)
        scale_TE = F.softplus(raw_TE) + NOISE_FLOOR
        noisy_TE = clean_TE + self._noise(clean_TE, sample_keys) * scale_TE
        routing = self.choose(noisy_TE)
        importance_E = torch.zeros_like(clean_TE).scatter(1, routing.experts_TK, routing.weights_TK).sum(dim=0)
        load_E = chance_of_choice(clean_TE, noisy_TE, scale_TE, self.topk).sum(dim=0)
        loss = self.config.importance_loss_coeff * squared_variation(importance_E)
        loss = loss + self.config.load_loss_coeff * squared_variation(load_E)
        return routing._replace(loss=loss)

    def _noise(self, like_TE: Tensor, sample_keys: Sequence[int]) -> Tensor:
        noise_BSE = torch.empty_like(like_TE).view(len(sample_keys), -1, self.num_experts)
        for noise_SE, sample_key in zip(noise_BSE, sample_keys, strict=True):
            noise_SE.normal_(generator=generator(like_TE.device, sample_key, self.layer, "router noise"))
        return noise_BSE.view_as(like_TE)


def chance_of_choice(clean_TE: Tensor, noisy_TE: Tensor, scale_TE: Tensor, topk: int) -> Tensor:
    """P [T, E]: the chance of each expert to be among the k, were its own noise drawn again."""
    if topk == clean_TE.shape[1]:
        return torch.ones_like(clean_TE)
    highest = noisy_TE.topk(topk + 1, dim=-1).values
    kth_T1, next_T1 = highest[:, topk - 1 : topk], highest[:, topk : topk + 1]
    # What expert i has to beat is the kth of the others: the (k+1)th of all where i itself is among the first k.
    rival_TE = torch.where(noisy_TE > next_T1, next_T1, kth_T1)
    return torch.special.ndtr((clean_TE - rival_TE) / scale_TE)


def squared_variation(sums_E: Tensor) -> Tensor:
    """CV^2: variance over squared mean."""
    return sums_E.var(correction=0) / sums_E.mean().square().clamp_min(1e-20)

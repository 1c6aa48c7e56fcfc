"""Expert choice (Zhou et al. 2022, arXiv 2202.09368): experts choose tokens, so that every expert is equally busy.

Shapes: T tokens, H hidden, E experts, C tokens of an expert.

    scores = softmax over experts of x W,   expert i takes the C tokens with its highest scores, and weighs them by them
    C = capacity factor x T x k / E, at least 1 and at most T

A token may have no expert or all of them. Which ones it has depends on all tokens of the microbatch, later ones
included: scores in training are not those of a generator that cannot look ahead, so generation is refused.
"""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_yuan.model.moe.routers.base import Routing
from megatron_yuan.model.moe.routers.softmax import SoftmaxRouter


class ExpertChoiceRouter(SoftmaxRouter):
    """Linear scores; a column of choices for each expert, -1 where the expert did not take the token."""

    def capacity(self, tokens: int) -> int:
        """C, for `tokens` tokens."""
        share = self.config.experts_per_token * tokens / self.num_experts
        return min(tokens, max(1, int(share + 1e-9)))  # a whole share must not be rounded below itself

    def choose(self, logits_TE: Tensor) -> Routing:
        """Each expert's top C tokens."""
        scores_TE = logits_TE.softmax(dim=-1)
        capacity = self.capacity(scores_TE.shape[0])
        taken_CE = scores_TE.topk(capacity, dim=0).indices
        is_taken_TE = torch.zeros_like(scores_TE, dtype=torch.bool).scatter(0, taken_CE, True)
        experts_E = torch.arange(self.num_experts, device=scores_TE.device)
        return Routing(
            torch.where(is_taken_TE, experts_E, -1),
            torch.where(is_taken_TE, scores_TE, 0.0),
            logits_TE,
            rows=capacity * self.num_experts,
        )

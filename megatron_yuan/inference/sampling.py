"""From scores to the next token: greedy, temperature, top-k, top-p. Pure functions; randomness comes in as numbers.

Shapes: B rows, V vocabulary. Scores of -inf are never chosen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_yuan.errors import ConfigError
from megatron_yuan.model.randomness import generator


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. Raises ConfigError for values outside their ranges."""

    temperature: float = 0.0
    """Scores are divided by it; 0 takes the best token always (greedy)."""
    top_k: int = 0
    """Choose among the k best; 0 among all."""
    top_p: float = 1.0
    """Choose among the fewest best tokens whose probabilities add up to at least this."""
    seed: int = 0
    """Row b of a batch draws from a generator of its own, keyed by this and b."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ConfigError(f"temperature is {self.temperature}, but must be 0 or more; 0 is greedy.")
        if self.top_k < 0 or type(self.top_k) is not int:
            raise ConfigError(f"top-k is {self.top_k}, but must be a whole number, 0 or more; 0 takes all tokens.")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top-p is {self.top_p}, but must be in (0, 1]; 1 takes all tokens.")


def greedy(logits_BV: Tensor) -> Tensor:
    """The best token of each row, [B]; of equals the first."""
    return logits_BV.argmax(dim=-1)


def probabilities(logits_BV: Tensor, sampling: Sampling) -> Tensor:
    """What tokens are drawn with, [B, V] in float64: temperature, then top-k, then top-p, renormalised."""
    scores_BV = logits_BV.double()
    # Subtracting the best first keeps a tiny temperature from overflowing.
    scores_BV = (scores_BV - scores_BV.amax(dim=-1, keepdim=True)) / max(sampling.temperature, 1e-300)
    scores_BV = keep_top_p(keep_top_k(scores_BV, sampling.top_k), sampling.top_p)
    return scores_BV.softmax(dim=-1)


def keep_top_k(logits_BV: Tensor, k: int) -> Tensor:
    """Scores with all but exactly the k best at -inf; k = 0, or more than there are, keeps all."""
    if k == 0 or k >= logits_BV.shape[-1]:
        return logits_BV
    best = logits_BV.topk(k, dim=-1)
    return torch.full_like(logits_BV, -math.inf).scatter_(-1, best.indices, best.values)


def keep_top_p(logits_BV: Tensor, p: float) -> Tensor:
    """Scores with all at -inf but the fewest best whose softmax adds up to p or more; at least one is kept."""
    if p == 1:
        return logits_BV
    ordered, indices = logits_BV.sort(dim=-1, descending=True, stable=True)
    share = ordered.softmax(dim=-1)
    before = share.cumsum(dim=-1) - share
    return torch.empty_like(logits_BV).scatter_(-1, indices, ordered.masked_fill(before >= p, -math.inf))


def draw(probabilities_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """The token at which each row's cumulative probability passes its number in [0, 1): [B]. None has probability 0."""
    cumulative_BV = probabilities_BV.cumsum(dim=-1)
    threshold_B1 = uniform_B.to(cumulative_BV).unsqueeze(-1) * cumulative_BV[:, -1:]
    return (
        torch.searchsorted(cumulative_BV, threshold_B1, right=True).squeeze(-1).clamp(max=_last_possible(cumulative_BV))
    )


def _last_possible(cumulative_BV: Tensor) -> Tensor:
    # Rounding can push a threshold to the very end, behind which only tokens of probability 0 may lie.
    return (cumulative_BV < cumulative_BV[:, -1:]).sum(dim=-1)


class Chooser:
    """Chooses token after token for a batch; the same seed and scores give the same tokens on any device."""

    def __init__(self, sampling: Sampling, batch: int) -> None:
        self.sampling = sampling
        self._random = [generator(torch.device("cpu"), sampling.seed, "row", row) for row in range(batch)]

    def __call__(self, logits_BV: Tensor) -> Tensor:
        """The next token of each row, [B], on the scores' device."""
        if self.sampling.temperature == 0 or self.sampling.top_k == 1:
            return greedy(logits_BV)
        uniform_B = torch.cat([torch.rand(1, generator=each, dtype=torch.float64) for each in self._random])
        return draw(probabilities(logits_BV, self.sampling), uniform_B.to(logits_BV.device))

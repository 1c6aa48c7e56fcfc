"""What one training step and one validation have to say. L layers, E experts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from numpy.typing import ArrayLike

from megatron_yuan.report.expert_figures import max_over_mean


@dataclass(frozen=True)
class StepResult:
    """One optimizer step, over all microbatches and replicas."""

    step: int
    """Number of the step just done, from 1."""
    loss: float
    """Mean loss of a token, in nats."""
    grad_norm: float
    """Norm of the whole gradient before clipping."""
    lr: float
    """Learning rate that the step used."""
    tokens: int
    """Tokens with loss in the global batch."""
    seconds: float
    """Wall time of the step."""
    samples: int
    """Samples consumed since the run began."""
    expert_load: Sequence[Sequence[int]] | None
    """[L][E] tokens routed to each expert in this step; None where nobody counted."""
    memory_bytes: int
    """Peak memory: of the GPU on a GPU, of the process on a CPU."""
    set_losses: Mapping[str, float] = field(default_factory=dict)
    """Mean loss of a token of each set of the blend that was in the global batch, in nats."""
    positions: int | None = None
    """Tokens that went through the network, with loss or without: what throughput counts. Unset: `tokens`."""
    coactivation: ArrayLike | None = None
    """[L][E][E] tokens that visited both experts; an expert's load on the diagonal."""
    top2_margin: Sequence[float] | None = None
    """[L] of a token's two highest expert probabilities, the mean difference."""
    balance_loss: Sequence[float] | None = None
    """[L] balance losses as they count in the objective, 0 where there are none."""

    skipped: str | None = None
    """Why the weights were left as they were; None: they were stepped."""

    @property
    def computed_tokens(self) -> int:
        """Tokens that the step's time was spent on."""
        return self.tokens if self.positions is None else self.positions

    @property
    def tokens_per_second(self) -> float:
        """Throughput of all devices together."""
        return self.computed_tokens / self.seconds if self.seconds > 0 else math.nan

    @property
    def load_imbalance(self) -> list[float] | None:
        """Of each layer, the busiest expert's load over the mean load: 1.0 is balanced, E is collapsed."""
        return None if self.expert_load is None else max_over_mean(self.expert_load).tolist()

    @property
    def worst_imbalance(self) -> tuple[float, int] | None:
        """The largest `load_imbalance` and its layer (from 0); None where nobody counted."""
        counted = [(ratio, i) for i, ratio in enumerate(self.load_imbalance or ()) if not math.isnan(ratio)]
        return max(counted, key=lambda pair: pair[0]) if counted else None


@dataclass(frozen=True)
class TaskScores:
    """The model on tasks, at one step."""

    accuracy: Mapping[str, float]
    """Of each task, the part of its questions that was answered right."""
    questions: Mapping[str, int]
    seconds: float
    """Wall time of all of it."""


@dataclass(frozen=True)
class EvalResult:
    """One validation."""

    step: int
    """Steps done when it was made."""
    losses: Mapping[str, float]
    """Mean loss of a token, in nats, of each validation set."""
    tokens: int
    """Tokens with loss, over all sets."""
    languages: Mapping[str, float] = field(default_factory=dict)
    """Mean loss of a token of each language, where the blend tells the sets' languages."""
    kind: Literal["validation", "test"] = "validation"
    """What the sets are held out for."""


def evaluation_of(
    step: int,
    sums: Mapping[str, tuple[float, int]],
    languages: Mapping[str, str],
    kind: Literal["validation", "test"] = "validation",
) -> EvalResult:
    """Of each set's sum of token losses and number of tokens; `languages`: of some of the sets, by name."""
    by_language: dict[str, tuple[float, int]] = {}
    for name, (loss, tokens) in sums.items():
        if name in languages:
            before = by_language.get(languages[name], (0.0, 0))
            by_language[languages[name]] = before[0] + loss, before[1] + tokens
    return EvalResult(
        step=step,
        losses={name: loss / max(1, tokens) for name, (loss, tokens) in sums.items()},
        tokens=sum(tokens for _, tokens in sums.values()),
        languages={language: loss / max(1, tokens) for language, (loss, tokens) in sorted(by_language.items())},
        kind=kind,
    )

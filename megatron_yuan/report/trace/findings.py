"""What a trace shows: the pipeline's bubble beside the theory's, the stages' times, and ranks that are slow."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from megatron_yuan.report.trace.trace import Rank, Trace, kind_of

SLOW = 1.15
"""So many times the median of the other replicas of its stage, a rank is called slow."""


@dataclass(frozen=True)
class Findings:
    """Figures of one trace."""

    bubble: float
    """Share of the schedule's time in which a rank neither goes forward nor backward, mean over ranks and steps."""
    ideal_bubble: float
    """(p - 1) / (m v + p - 1) for p stages, m microbatches and v chunks a stage: with even stages, and nothing else."""
    stage_seconds: Sequence[float]
    """Forward and backward of a microbatch through each stage, median over its ranks."""
    slow: Sequence[tuple[str, float]]
    """Ranks that take longer than the other replicas of their stage, and how many times as long."""

    def lines(self) -> list[str]:
        """In words."""
        times = ", ".join(f"{seconds * 1e3:.1f}" for seconds in self.stage_seconds)
        uneven = max(self.stage_seconds, default=0.0) / (statistics.fmean(self.stage_seconds or [0.0]) or 1.0)
        found = [
            f"bubble {self.bubble:.1%}, by theory {self.ideal_bubble:.1%}; forward and backward of a microbatch by "
            f"stage {times} ms" + (f", the slowest {uneven:.2f} x the mean" if len(self.stage_seconds) > 1 else "")
        ]
        return found + [
            f"{name} is slow: {times:.2f} x the median of its stage's replicas" for name, times in self.slow
        ]


def findings(trace: Trace) -> Findings:
    """Of a trace with one step at least."""
    p, m, v = trace.stages, trace.microbatches, trace.chunks
    idle = [share for rank in trace.ranks for share in _idle_shares(rank, trace)]
    busy = {rank.rank: _busy(rank) / max(1, _trained(rank) * m) for rank in trace.ranks}
    by_stage = [[rank for rank in trace.ranks if rank.stage == stage] for stage in range(p)]
    slow = []
    for members in by_stage:
        for rank in members:
            others = [busy[other.rank] for other in members if other is not rank]
            if others and (usual := statistics.median(others)) and busy[rank.rank] > SLOW * usual:
                slow.append((rank.name, busy[rank.rank] / usual))
    return Findings(
        bubble=statistics.fmean(idle) if idle else 0.0,
        ideal_bubble=(p - 1) / (m * v + p - 1),
        stage_seconds=[statistics.median(busy[rank.rank] for rank in members) for members in by_stage if members],
        slow=slow,
    )


def _trained(rank: Rank) -> int:
    """Steps with passes: one that was left out has none."""
    return len({span.step for span in rank.spans if kind_of(span.phase) == "backward"})


def _busy(rank: Rank) -> float:
    return sum(span.seconds for span in rank.spans if kind_of(span.phase) in ("forward", "backward"))


def _idle_shares(rank: Rank, trace: Trace) -> list[float]:
    """Of each step, between the first forward and the last backward of the rank's whole pipeline."""
    pipeline = [other for other in trace.ranks if other.replica == rank.replica]
    shares = []
    for step in trace.steps:
        passes = {
            other.rank: [s for s in other.spans if s.step == step and kind_of(s.phase) in ("forward", "backward")]
            for other in pipeline
        }
        every = [span for spans in passes.values() for span in spans]
        if every:
            window = max(s.begin + s.seconds for s in every) - min(s.begin for s in every)
            shares.append(1 - sum(s.seconds for s in passes[rank.rank]) / window)
    return shares

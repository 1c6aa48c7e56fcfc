"""The spans of all ranks, and what kind of work each phase is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from megatron_yuan.parallel.trace import Span

Kind = Literal["forward", "backward", "send", "receive", "send and receive", "all-reduce", "optimizer", "data", "other"]
"""A pipeline that runs full sends one way and receives the other at once: that is one exchange."""
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class Rank:
    """One rank's part in a trace."""

    rank: int
    stage: int
    replica: int
    host: str
    spans: Sequence[Span]

    @property
    def name(self) -> str:
        """For people."""
        return f"rank {self.rank}: stage {self.stage}, replica {self.replica}"


@dataclass(frozen=True)
class Trace:
    """Some steps of all ranks."""

    ranks: Sequence[Rank]
    stages: int
    chunks: int
    """Of the model on each stage; above 1 the schedule is interleaved."""
    microbatches: int
    """Of a replica and step."""

    @property
    def begin(self) -> float:
        """Seconds, on rank 0's clock."""
        return min((span.begin for rank in self.ranks for span in rank.spans), default=0.0)

    @property
    def name(self) -> str:
        """For people."""
        first, last = self.steps[0], self.steps[-1]
        return f"step {first}" if first == last else f"steps {first} to {last}"

    @property
    def steps(self) -> list[int]:
        """Numbers of the steps in it."""
        return sorted({span.step for rank in self.ranks for span in rank.spans})


def kind_of(phase: str) -> Kind:
    """What a phase is, by the name that it has in the watch."""
    if phase in ("forward", "backward", "data", "optimizer"):
        return phase
    sends, receives = "send" in phase, "recv" in phase
    if sends or receives or "exchange" in phase:
        return "send and receive" if sends == receives else "send" if sends else "receive"
    if "grads" in phase or "sum" in phase or "agreement" in phase or "all reduce" in phase:
        return "all-reduce"
    return "other"

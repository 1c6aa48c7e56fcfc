"""In which order a pipeline stage computes: the rules of megatron-core's 1F1B and interleaved 1F1B, as arithmetic.

A pass is one microbatch through one chunk of a stage's layers, forward or backward. Each stage first does its warmup,
forward passes alone, then one forward and one backward in turn, then the backward passes that are left. Forward passes
go through the chunks in turns of `stages` microbatches, backward passes through the chunks in the opposite order.

tests/contract holds this against the tables that the library itself computes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Pass:
    """One microbatch through one chunk."""

    forward: bool
    chunk: int
    microbatch: int


@dataclass(frozen=True)
class Order:
    """The passes of one stage: `warmup` of the forward ones come first, as many backward ones last."""

    forwards: tuple[Pass, ...]
    backwards: tuple[Pass, ...]
    warmup: int

    @property
    def passes(self) -> list[Pass]:
        """All of them, in order."""
        steady = zip(self.forwards[self.warmup :], self.backwards, strict=False)
        tail = self.backwards[len(self.forwards) - self.warmup :]
        return [*self.forwards[: self.warmup], *(each for pair in steady for each in pair), *tail]

    def in_flight(self, weights: Sequence[int]) -> Counter[int]:
        """Passes of each chunk that are kept for backward when they weigh most, `weights`: of a pass of each chunk.

        As many are kept from the warmup on, but of chunks in turn: where these are unequal not all times are alike.
        """
        kept, fullest, weight, most = Counter[int](), Counter[int](), 0, 0
        for each in self.passes:
            sign = 1 if each.forward else -1
            kept[each.chunk] += sign
            weight += sign * weights[each.chunk]
            if weight > most:
                fullest, most = kept.copy(), weight
        return fullest


def order_of(stage: int, stages: int, virtual: int, microbatches: int) -> Order:
    """What stage number `stage` of `stages` does with `virtual` chunks of layers."""
    table = _table(stages, virtual, microbatches)
    warmup = stages - stage - 1
    if virtual > 1:
        warmup = 2 * warmup + (virtual - 1) * stages
    return Order(
        tuple(Pass(True, chunk, microbatch) for microbatch, chunk in table),
        tuple(Pass(False, virtual - 1 - chunk, microbatch) for microbatch, chunk in table),
        min(warmup, len(table)),
    )


def _table(stages: int, virtual: int, microbatches: int) -> list[tuple[int, int]]:
    """(microbatch, chunk) of each forward pass."""
    return [
        (microbatch, chunk)
        for begin in range(0, microbatches, stages)
        for chunk in range(virtual)
        for microbatch in range(begin, min(begin + stages, microbatches))
    ]

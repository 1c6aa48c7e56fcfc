"""From what is known of all ranks to the culprit: a pure function, without clocks, threads or processes.

The culprit, not its victims: when one rank stands still, all others soon wait for it inside a collective. So a rank
that waits is never blamed while another is at work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from megatron_yuan.parallel.watch.pulse import Position

LAST_WORDS_SECONDS = 6.0
"""So long after one rank ended by an error, the others may end by errors of their own."""
SETTLED_SECONDS = 2.0
"""Once a collective has failed somewhere, a rank that stands still for so long will not move again."""

Farewell = Literal["done", "error", "recurring error", "lost contact"]
"""Why a process ends: its work is done; by an error of its own, which another start may not meet, or would; by a
collective that failed, so by another's fault."""


@dataclass(frozen=True)
class Standing:
    """What is known of one rank. Times are in seconds, by the clock of the one who watches."""

    rank: int
    name: str
    """Host and process, for messages."""
    position: Position
    silent: float = 0.0
    """Since it was last heard."""
    still: float = 0.0
    """Since its last beat."""
    gone: bool = False
    """Its connection is closed."""
    farewell: Farewell | None = None
    reason: str = ""
    """Of the farewell."""
    parted: float = 0.0
    """Since the farewell."""

    def __str__(self) -> str:
        return f"rank {self.rank} ({self.name})"


@dataclass(frozen=True)
class Finding:
    """What ends the job."""

    text: str
    """Names rank, host, step, phase and microbatch."""
    frozen: tuple[int, ...] = ()
    """Ranks that cannot end by themselves."""
    recurs: bool = False
    """Another start would meet it again."""


def judge_life(standings: Sequence[Standing], liveness_seconds: float, start_seconds: float = 0) -> Finding | None:
    """Who among `standings`, which may be of some ranks alone, is dead, frozen or has failed. 0: silence is allowed.

    `start_seconds`: of silence, until any rank has come to its first step.
    """
    here = _here(standings)
    dead = [s for s in standings if s.farewell is None and s.gone]
    if dead:
        return Finding(f"{dead[0]} is dead: it ended without a word, {_last(dead[0])}{_also(dead)}")
    trouble = _in_trouble(standings)
    failed = [
        s
        for s in standings
        if s.farewell in ("error", "recurring error") and (trouble or s.parted > LAST_WORDS_SECONDS)
    ]
    if failed and (here or trouble):
        first = max(failed, key=lambda s: s.parted)
        recurs = first.farewell == "recurring error"
        return Finding(f"{first} ended by an error in {first.position}: {first.reason}", recurs=recurs)
    # Before the first step, a rank that is busy in an extension, as with its data, may be silent for long. Once any
    # rank is in a step, all are past that; one that froze within a heartbeat of it was last heard of before.
    begun = any(s.position.step is not None for s in standings)
    limit = liveness_seconds and (liveness_seconds if begun or trouble else max(start_seconds, liveness_seconds))
    silent = [s for s in here if limit and (begun or trouble or start_seconds) and s.silent > limit]
    if silent:
        first = max(silent, key=lambda s: s.silent)
        return Finding(
            f"{first} does not answer for {first.silent:.0f} s: frozen, or its host out of reach; "
            f"{_last(first)}{_also(silent)}",
            frozen=tuple(s.rank for s in silent),
        )
    left = [s for s in standings if s.farewell == "lost contact" and s.gone and s.parted > LAST_WORDS_SECONDS]
    if left and here:
        return Finding(f"{left[0]} ended in {left[0].position}, where a collective failed: {left[0].reason}")
    return None


def judge_pace(standings: Sequence[Standing], hang_seconds: float) -> Finding | None:
    """Who among all ranks, which are alive, stands still. 0 seconds: only once a collective has failed somewhere."""
    limit = SETTLED_SECONDS if _in_trouble(standings) else hang_seconds
    here = _here(standings)
    running = [s for s in here if s.position.step is not None]
    still = [s for s in running if limit and s.still > limit]
    culprits = [s for s in still if not s.position.waits]
    if culprits:
        first = min(culprits, key=_behind)
        others = len(standings) - len(culprits)
        waiting = f"; {others} other{'s wait' if others > 1 else ' waits'} for it" if others else ""
        return Finding(f"{first} stands still for {first.still:.0f} s in {first.position}{_also(culprits)}{waiting}")
    if still and len(still) == len(here):
        first = min(still, key=_behind)
        return Finding(
            f"all ranks wait for each other, for {min(s.still for s in still):.0f} s. Furthest behind: {first}, "
            f"for {first.still:.0f} s in {first.position}"
        )
    return None


def _here(standings: Sequence[Standing]) -> list[Standing]:
    return [s for s in standings if s.farewell is None and not s.gone]


def _in_trouble(standings: Sequence[Standing]) -> bool:
    """Some rank's collective has failed: the job is over, and the question is only by whose fault."""
    return any(s.farewell == "lost contact" for s in standings)


def _behind(standing: Standing) -> tuple[int, float]:
    """Sorts those first who are furthest behind: in an earlier step, or stopped earlier."""
    return standing.position.step or 0, -standing.still


def _last(standing: Standing) -> str:
    return f"last heard of in {standing.position}, {standing.silent:.1f} s ago"


def _also(alike: Sequence[Standing]) -> str:
    if len(alike) == 1:
        return ""
    named = ", ".join(str(s.rank) for s in alike[:8])
    return f" (of {len(alike)} such ranks: {named}{', ...' if len(alike) > 8 else ''})"

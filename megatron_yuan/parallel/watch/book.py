"""What one process has heard of others, and when by its own clock: clocks of hosts are never compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from megatron_yuan.parallel.watch.identity import Identity
from megatron_yuan.parallel.watch.pulse import Position
from megatron_yuan.parallel.watch.verdict import Farewell, Standing

START = Position(None, "start", None, False)


@dataclass
class _Entry:
    heard: float
    moved: float
    beats: int = -1
    position: Position = START
    gone: bool = False
    farewell: Farewell | None = None
    reason: str = ""
    parted: float = 0.0


class Book:
    """An entry for each rank that has been heard once; times are in seconds of one monotonic clock."""

    def __init__(self, identities: Mapping[int, Identity]) -> None:
        self._identities = identities
        self._entries: dict[int, _Entry] = {}

    def hear(self, rank: int, now: float) -> None:
        """`rank` has said something."""
        self._entry(rank, now).heard = now

    def move(self, rank: int, beats: int, position: Position, now: float) -> None:
        """`rank` says that it has beaten so many times, and where it is."""
        entry = self._entry(rank, now)
        if entry.beats != beats:
            entry.moved = now
        entry.heard, entry.beats, entry.position = now, beats, position

    def part(self, rank: int, farewell: Farewell, reason: str, now: float) -> None:
        """`rank` says that it ends. The first reason counts."""
        entry = self._entry(rank, now)
        if entry.farewell is None:
            entry.farewell, entry.reason, entry.parted = farewell, reason, now

    def lose(self, rank: int, now: float) -> None:
        """The connection to `rank` is closed."""
        self._entry(rank, now).gone = True

    def forgive(self, now: float) -> None:
        """This process itself has not run for a while, so it cannot know who was silent."""
        for entry in self._entries.values():
            entry.heard = entry.moved = now

    def standings(self, now: float) -> list[Standing]:
        """For the verdict, by rank."""
        return [self._standing(rank, entry, now) for rank, entry in sorted(self._entries.items())]

    def _entry(self, rank: int, now: float) -> _Entry:
        return self._entries.setdefault(rank, _Entry(heard=now, moved=now))

    def _standing(self, rank: int, entry: _Entry, now: float) -> Standing:
        return Standing(
            rank,
            str(self._identities[rank]),
            entry.position,
            silent=now - entry.heard,
            still=now - entry.moved,
            gone=entry.gone,
            farewell=entry.farewell,
            reason=entry.reason,
            parted=now - entry.parted,
        )


def position_of(message: Any) -> Position:
    """From what came over the wire."""
    step, phase, microbatch, waits, chunk = message
    return Position(step, str(phase), microbatch, bool(waits), chunk)

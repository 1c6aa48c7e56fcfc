"""What the training thread says of itself, for another thread to publish: where it is, told by one assignment."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple


class Position(NamedTuple):
    """A place in the run. Every beat makes a new one, so two beats at the same place still are two objects."""

    step: int | None
    """None until the first step: nothing there is judged by its pace."""
    phase: str
    microbatch: int | None
    """Counted from 1."""
    waits: bool
    """For other ranks: inside a collective or an exchange between stages."""
    chunk: int | None = None
    """Which of a stage's parts of the model a pass goes through, counted from 1; None where it has one."""

    def __str__(self) -> str:
        """In words, as in 'step 12, forward of microbatch 2'."""
        step = "its start" if self.step is None else f"step {self.step}"
        return f"{step}, {self.phase}" + ("" if self.microbatch is None else f" of microbatch {self.microbatch}")


class Pulse:
    """Written by the training thread alone; any thread may read `position`, which is whole at any moment."""

    def __init__(self) -> None:
        self.position = Position(None, "start", None, False)
        self.step: int | None = None
        self.during = ""
        """Before the name of a phase that several things go through, such as 'validation '."""
        self.listeners: list[Callable[[Position], None]] = []
        """Told of every beat, in the training thread: what records a trace, and what times the start."""

    def beat(self, phase: str, microbatch: int | None = None, waits: bool = False, chunk: int | None = None) -> None:
        """Say that `phase` begins, or that it goes on; less than a microsecond."""
        self._tell(Position(self.step, phase, microbatch, waits, chunk))

    def enter_step(self, step: int, during: str = "") -> None:
        """Say that the step `step` begins, or something `during` it."""
        self.step, self.during = step, during
        self.beat(f"{during}begin")

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Around a collective: whoever is in here waits for others. An error leaves the position as it was in it."""
        before = self.position
        self._tell(Position(self.step, f"{before.phase} ({what})", before.microbatch, True))
        yield
        self._tell(before._replace())

    def _tell(self, position: Position) -> None:
        self.position = position
        for listener in self.listeners:
            listener(position)

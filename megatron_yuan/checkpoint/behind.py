"""One save under way: each rank writes its share on a thread of its own, the main rank's thread commits when all have.

The threads meet through the checkpoint's own temporary folder: when a rank's files are durable it leaves a record
of them there, and once all records are there the main rank's thread writes the manifest and renames. So no thread ever
enters a collective, which neither gloo nor NCCL allows beside the training thread's; a checkpoint becomes durable even
while the training thread stands in a long validation, hangs, or dies of another rank's death; and a rank that dies
before it leaves its record leaves the checkpoint unfinished, as it should be. (A gloo group for the threads alone would
hang with the death of any rank; to commit at a step boundary would lose what is written whenever no step follows.)

What the training threads must know alike, success or failure, they ask each other in `poll`, a collective that
all ranks enter at the same steps, and only while a save is under way.
"""

from __future__ import annotations

import threading
import time
from typing import Protocol

from megatron_yuan.checkpoint import commit
from megatron_yuan.checkpoint.agreement import Failure, Ranks, raise_alike
from megatron_yuan.checkpoint.commit import Retention
from megatron_yuan.checkpoint.save import Order, Part, finish, write_part
from megatron_yuan.checkpoint.work import Progress, Stopped


class Beat(Protocol):
    """Tells the watch where the training thread is; `parallel.watch.pulse.Pulse.beat` is one such thing."""

    def __call__(self, phase: str, *, waits: bool) -> None:
        """`waits`: for other ranks."""


def silent(phase: str, *, waits: bool) -> None:
    """Nobody watches."""


_LOOK_EVERY = (0.005, 0.5)  # seconds between looks for other ranks' records: at first, and at last
_ROUND = 0.5  # seconds: a collective that waits no longer than this cannot time out, however slow the disk


class SaveBehind:
    """Begins at once. End it with `wait`, or with `abandon`; `poll` meanwhile."""

    def __init__(self, order: Order, ranks: Ranks, retention: Retention, beat: Beat = silent) -> None:
        """`beat` is called by whoever waits, as long as this rank's writing goes on."""
        self.order, self._ranks, self._retention, self._beat = order, ranks, retention, beat
        self.progress = Progress(f"writing {order.pending.final.name}", order.nbytes)
        self.ended: float | None = None
        """When this rank's thread was done, by time.monotonic: on the main rank, when the checkpoint was durable."""
        self._failure: BaseException | None = None
        self._written = False
        self._thread = threading.Thread(target=self._run, name="checkpoint", daemon=True)
        self._thread.start()

    def poll(self, beats: bool = True) -> bool:
        """Whether the checkpoint is durable; a failure on any rank is raised on all. Called by all ranks together."""
        done = self.ended is not None
        states = self._ranks.gather((done, Failure.of(self._failure)), beats)
        try:
            raise_alike(self._ranks, self.order.what, self._failure, [failure for _, failure in states])
        except BaseException:
            self._stop()
            self._ranks.gather(None)  # nobody writes any more
            self._clear()
            raise
        return all(done for done, _ in states)

    def wait(self) -> None:
        """Return when the checkpoint is durable; fails as `poll` does. Called by all ranks together.

        A disk that hangs must not pass for work, nor a slow one for a hang: only bytes that move are a beat.
        """
        seen = -1
        while True:
            if self.progress.counts != seen:
                seen = self.progress.counts
                self._beat("save", waits=self._written)
            self._thread.join(_ROUND)
            if self.poll(beats=False):
                return

    def abandon(self, patience: float = 0) -> None:
        """The run is ending in disorder: give the writing so many seconds to come to its end, then break it off.

        No collective, since other ranks may be dead. Does nothing after `wait` or a failed `poll`.
        """
        self._thread.join(patience)
        self._stop()
        self._clear()

    def _stop(self) -> None:
        self.progress.stop()
        self._thread.join()

    def _clear(self) -> None:
        if self._ranks.rank == 0:
            commit.abandon(self.order.pending)

    def _run(self) -> None:
        try:
            part = write_part(self.order, self.progress)
            self._written = True
            self.progress.count(0)
            if self._ranks.rank == 0:
                finish(self.order, [part, *self._others()], self._retention)
            else:
                commit.leave_record(self.order.pending, self._ranks.rank, part.to_json())
            self.ended = time.monotonic()
        except BaseException as error:
            self._failure = error

    def _others(self) -> list[Part]:
        """The other ranks' parts, when all are there."""
        pending, missing = self.order.pending, set(range(1, self._ranks.world_size))
        pause, longest = _LOOK_EVERY
        while missing := missing - commit.records_left(pending):
            if self.progress.stopped:
                raise Stopped
            time.sleep(pause)
            pause = min(longest, 1.5 * pause)
        ranks = range(1, self._ranks.world_size)
        return [Part.from_json(*commit.take_record(pending, rank)) for rank in ranks]

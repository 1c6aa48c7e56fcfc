"""What follows a finding: it is said, all ranks leave their stacks and end together, and the frozen are killed.

The training thread may be stuck for ever, so the watch's thread ends the process where that does not.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from megatron_yuan.errors import PeerError
from megatron_yuan.log import logger
from megatron_yuan.parallel.watch.identity import Identity
from megatron_yuan.parallel.watch.link import Link
from megatron_yuan.parallel.watch.stacks import Stacks, within
from megatron_yuan.parallel.watch.verdict import Finding

MEET_SECONDS = 0.5  # a collective fails at once where the process at its other end has died
STACKS_SECONDS = 5.0  # for all ranks to write their stacks
RAISE_SECONDS = 2.0  # a training thread that has not met the fault by now never will
UNWIND_SECONDS = 30.0  # for the training thread to close what it has open


@dataclass
class Ending:
    """Of one rank's process. Events are set by one thread and waited for by the other."""

    rank: int
    identities: Sequence[Identity]
    stacks: Stacks
    speaks: bool
    """This rank says what it finds, where rank 0 cannot."""
    pause: float
    """Seconds between heartbeats."""
    on_end: Callable[[PeerError], object] | None = None
    """Called in a thread of its own with the finding, before the process ends, for a few seconds at most."""
    last_error: str = ""
    """Traceback of what the training thread has met."""
    met: threading.Event = field(default_factory=threading.Event)
    """`last_error` is there."""
    concluded: threading.Event = field(default_factory=threading.Event)
    """Stacks are written, so the training thread may raise."""
    raising: threading.Event = field(default_factory=threading.Event)
    """The training thread is on its way out."""

    def conclude(self, link: Link, finding: Finding, own: bool, alive: Collection[int]) -> None:
        """Never returns. `own`: this rank found it; `alive`: on rank 0, those whose stacks to wait for."""
        if own and self.rank == 0:
            link.send({"finding": finding.text, "frozen": finding.frozen, "recurs": finding.recurs})
        if own and self.speaks:
            _say(f"{finding.text}. All ranks end; stacks are {self.stacks.where}.")
        self.met.wait(MEET_SECONDS)
        # What recurs has its words for the user; where not even the disk takes the stacks, they are not in their way.
        within(STACKS_SECONDS, lambda: self.stacks.dump(finding.text, self.last_error, aloud=not finding.recurs))
        if self.rank == 0:
            _gather_stacks(link, set(alive) - {0, *finding.frozen})
        elif not own:  # without rank 0 there is nobody to wait for
            _hand_in_stacks(link)
        elif finding.frozen:
            time.sleep(2 * self.pause)  # the others find it by themselves, and should not find it dead
        self._kill(finding.frozen)
        on_end, error = self.on_end, PeerError(finding.text, finding.recurs)
        if on_end is not None:
            within(STACKS_SECONDS, lambda: on_end(error))
        self.concluded.set()
        if self.raising.wait(RAISE_SECONDS):
            time.sleep(UNWIND_SECONDS)
        within(1.0, _end_workers)
        within(1.0, _flush)
        os._exit(error.exit_code)

    def _kill(self, frozen: Collection[int]) -> None:
        here = self.identities[self.rank]
        for rank in frozen:
            if rank != self.rank and self.identities[rank].beside(here):
                self.identities[rank].kill()


def _gather_stacks(link: Link, missing: set[int]) -> None:
    """All ranks end together, when all have written: a launcher kills the rest once the first has ended."""
    deadline = time.monotonic() + STACKS_SECONDS
    while missing and time.monotonic() < deadline:
        for rank, message in link.exchange(deadline - time.monotonic()):
            if message is None or "stacked" in message:
                missing.discard(rank)
    link.send({"end": True})


def _hand_in_stacks(link: Link) -> None:
    link.send({"stacked": True})
    deadline, over = time.monotonic() + STACKS_SECONDS, False
    while not over and time.monotonic() < deadline:
        over = any(message is None or "end" in message for _, message in link.exchange(deadline - time.monotonic()))


def _say(text: str) -> None:
    # The training thread may hang while it holds a lock of the logger; then without it.
    if not within(1.0, lambda: logger.error(text)):
        os.write(2, f"{text}\n".encode())


def _end_workers() -> None:
    for child in multiprocessing.active_children():
        child.kill()  # they would find out after a while, but not if they are frozen too


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()

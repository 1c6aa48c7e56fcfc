"""Each process's part in the watch: a thread that publishes the heartbeat and judges.

Rank 0 hears all ranks and judges them; the others hear rank 0 and judge it alone, so that its death or standstill is
found without it. The thread makes no tensor and calls no device.
"""

from __future__ import annotations

import faulthandler
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from megatron_yuan.errors import PeerError, YuanError, will_recur
from megatron_yuan.log import logger
from megatron_yuan.parallel.watch.book import Book, position_of
from megatron_yuan.parallel.watch.contact import lost_contact
from megatron_yuan.parallel.watch.ending import STACKS_SECONDS, Ending
from megatron_yuan.parallel.watch.identity import Identity
from megatron_yuan.parallel.watch.link import Heard, Link
from megatron_yuan.parallel.watch.pulse import Pulse
from megatron_yuan.parallel.watch.stacks import Stacks
from megatron_yuan.parallel.watch.verdict import Farewell, Finding, judge_life, judge_pace

RANKS_A_SECOND = 64
PATIENCE_SECONDS = 8.0  # of a rank whose collective failed, for the name of the culprit
STDERR = 2


@dataclass(frozen=True)
class Limits:
    """What is too long, in seconds; 0: nothing is."""

    liveness: float
    hang: float
    ranks: int = 1

    @property
    def beat(self) -> float:
        """Between heartbeats. Rank 0 spends about 20 us on each of another rank, so many ranks beat less often."""
        rest = max(1.0, self.ranks / RANKS_A_SECOND)
        return min(rest, (self.liveness or 30.0) / 6)

    @property
    def starved(self) -> float:
        """A wait that takes so much longer than asked: this process, or the whole job, was stopped for a while."""
        return min(3.0, self.liveness / 3) if self.liveness else 3.0


class Watch:
    """One rank's. A context manager: it watches from entry to exit."""

    def __init__(
        self,
        pulse: Pulse,
        rank: int,
        identities: Sequence[Identity],
        link: Link | None,
        limits: Limits,
        stacks: Stacks,
        speaks: bool = True,
    ) -> None:
        """`link` None: watch nothing. `speaks`: this rank says what it finds, where rank 0 cannot."""
        self.pulse = pulse
        self.ending = Ending(rank, identities, stacks, speaks, limits.beat)
        self._rank, self._link, self._limits = rank, link, limits
        self._book = Book(dict(enumerate(identities)))
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._position, self._beats = pulse.position, 0
        # Written by one thread, read by the other:
        self._farewell: tuple[Farewell, str] | None = None
        self._finding: Finding | None = None
        self._parted, self._stopping, self._found = threading.Event(), threading.Event(), threading.Event()

    def __enter__(self) -> Watch:
        if self._link is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._link is None or self._found.is_set():
            return  # the thread stays, lest the way out be blocked for ever
        self._part("done", "")
        self._stopping.set()
        self._wake()
        self._thread.join(STACKS_SECONDS)

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """Around the training thread's work: a collective that fails by another's fault becomes a PeerError naming it.

        Other errors are told to the other ranks, and go on as they are.
        """
        try:
            yield
        except BaseException as error:
            if self._link is None or self._farewell is not None:
                raise
            ending = self.ending
            ending.last_error = "".join(traceback.format_exception(error)) + "\n"
            ending.met.set()
            lost = lost_contact(error)
            lines = str(error).splitlines()
            # What the user is to mend is short, and all of it counts; the rank that says it here may not be heard.
            words = " ".join(lines) if isinstance(error, YuanError) else next(iter(lines), "")
            farewell = "lost contact" if lost else "recurring error" if will_recur(error) else "error"
            self._part(farewell, f"{type(error).__name__}: {words}".rstrip("."))
            if lost and self._found.wait(PATIENCE_SECONDS):
                ending.concluded.wait(3 * STACKS_SECONDS)
            ending.raising.set()
            if lost and self._finding is not None:
                found = self._finding
                raise PeerError(f"{found.text}. Stacks are {ending.stacks.where}.", found.recurs) from error
            raise

    def _part(self, farewell: Farewell, reason: str) -> None:
        if self._farewell is None:
            self._farewell = (farewell, reason)
            self._wake()
            self._parted.wait(self._limits.beat)

    def _wake(self) -> None:
        assert self._link is not None
        with suppress(OSError):  # the thread has ended already, and closed it
            self._link.wake()

    def _run(self) -> None:
        assert self._link is not None
        try:
            self._watch(self._link)
            if self._farewell is not None and self._farewell[0] == "done":
                self._link.send({"closing": True})
        except BaseException:
            logger.exception("the watch over hangs and deaths has failed; the run goes on without it")
            self._link.send({"closing": True})
        finally:
            if self._limits.liveness:
                faulthandler.cancel_dump_traceback_later()
            self._link.close()

    def _watch(self, link: Link) -> None:
        next_beat = time.monotonic()
        while not self._stopping.is_set():
            now = time.monotonic()
            if now >= next_beat:
                self._beat(link, now)
                next_beat = now + self._limits.beat
            heard = link.exchange(next_beat - now)
            after = time.monotonic()
            if after - next_beat > self._limits.starved:
                self._book.forgive(after)
            if not self._take(heard, after):
                return
            if any(message is not None and "token" in message for _, message in heard):
                next_beat = after  # a new one should not wait for its first word
            if self._farewell is not None and not self._parted.is_set():
                self._say_farewell(link, after)
            told, self._finding = self._finding, self._finding or self._judge(after)
            if self._finding is not None:
                self._found.set()
                alive = [standing.rank for standing in self._book.standings(after) if not standing.gone]
                self.ending.conclude(link, self._finding, told is None, alive)

    def _beat(self, link: Link, now: float) -> None:
        position = self.pulse.position
        if position is not self._position:
            self._position, self._beats = position, self._beats + 1
        self._book.move(self._rank, self._beats, position, now)
        self._take(link.send({"beats": self._beats, "at": position}), now)
        if self._limits.liveness and position.step is not None:
            # Without this thread, as where an extension never lets go of the interpreter: stacks all the same.
            with suppress(RuntimeError):  # out of memory there is none for its thread either
                faulthandler.dump_traceback_later(self._limits.liveness, file=STDERR)

    def _say_farewell(self, link: Link, now: float) -> None:
        assert self._farewell is not None
        self._beat(link, now)
        link.send({"farewell": self._farewell})
        farewell, reason = self._farewell
        self._book.part(self._rank, farewell, reason, now)
        self._parted.set()

    def _take(self, heard: Sequence[Heard], now: float) -> bool:
        """Note what was heard; False where there is nothing to watch any more."""
        for rank, message in heard:
            if message is None:
                self._book.lose(rank, now)
                continue
            self._book.hear(rank, now)
            if "beats" in message:
                self._book.move(rank, message["beats"], position_of(message["at"]), now)
            elif "farewell" in message:
                farewell, reason = message["farewell"]
                self._book.part(rank, farewell, reason, now)
            elif "finding" in message:
                self._finding = Finding(message["finding"], tuple(message["frozen"]), message["recurs"])
            elif "closing" in message and self._rank == 0:
                self._book.part(rank, "done", "", now)  # others are still at work, and look to this rank
            elif "closing" in message:
                return False
        return True

    def _judge(self, now: float) -> Finding | None:
        standings = self._book.standings(now)
        if self._rank != 0:
            return judge_life(standings, self._limits.liveness, self._limits.hang)
        life = judge_life(standings, self._limits.liveness, self._limits.hang)
        return life or judge_pace(standings, self._limits.hang)

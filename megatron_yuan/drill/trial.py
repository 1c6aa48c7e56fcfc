"""One run that is broken several times in the same way and has to come to the same end as one that never was."""

from __future__ import annotations

import random
import re
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from megatron_yuan.drill import evidence
from megatron_yuan.drill.evidence import History
from megatron_yuan.drill.rig import SAVE_INTERVAL, Layout, Rig
from megatron_yuan.drill.session import Order, Session, signal_process

START_SECONDS = 240.0  # patience with the start of the program, on a machine that has other things to do
END_SECONDS = 60.0  # after a fault all processes of the attempt must be gone within this


@dataclass
class Try:
    """What became of one fault."""

    detail: str
    by_itself: bool = False
    """All processes ended without the drill's help."""
    survived: bool = False
    """No durable checkpoint was lost, and the run went on from the newest sound one."""
    lost_steps: int | None = None
    end_seconds: float | None = None
    identical: bool | None = None
    """Known when the run is over; None where it must not be."""
    problems: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Everything that was promised was kept."""
        return self.by_itself and self.survived and self.identical is not False and not self.problems


@dataclass
class Moment:
    """How things stood when a fault struck."""

    time: float
    attempt: int
    durable: int
    position: int


class Trial:
    """A run folder, what is done to it, and what came of that."""

    def __init__(self, folder: Path, rig: Rig, layout: Layout, draw: random.Random, flags: Sequence[str] = ()) -> None:
        """`flags`: further ones for the training program."""
        self.folder, self.rig, self.layout, self.draw, self.flags = folder, rig, layout, draw, tuple(flags)
        self.run = folder / "run"
        self.tries: list[Try] = []
        self.sessions: list[Session] = []

    @property
    def session(self) -> Session:
        """The newest."""
        return self.sessions[-1]

    def start(self, orders: Sequence[Order] = (), restarts: int = 0) -> Session:
        """Start the run, as a launcher would, whether it is new or was broken off."""
        flags = [*self.rig.flags(self.layout, self.run), *self.flags]
        self.sessions.append(Session.start(self.folder, len(self.sessions), self.layout, flags, orders, restarts))
        return self.session

    def await_training(self, attempt: int = 0, since: float = 0.0) -> None:
        """Wait until an attempt trains and a checkpoint is durable."""

        def trains() -> bool:
            if self.session.launcher.poll() is not None:
                raise RuntimeError(f"the launcher ended with {self.session.launcher.returncode}, before a fault")
            begun = self.session.attempts > attempt and History.of(self.run).starts_since(since)
            return bool(begun) and evidence.durable_step(self.run) > 0

        if not self.session.wait(trains, START_SECONDS):
            raise RuntimeError(f"attempt {attempt} trains nothing within {START_SECONDS:.0f} s")

    def pause(self, seconds: float) -> float:
        """Let the run go on for so long, or nearly to its end where that comes first; returns the seconds it was."""
        started, near_end = time.monotonic(), self.rig.steps - SAVE_INTERVAL
        self.session.wait(lambda: History.of(self.run).position >= near_end, seconds)
        return time.monotonic() - started

    def moment(self, attempt: int = 0) -> Moment:
        """How things stand now."""
        return Moment(time.time(), attempt, evidence.durable_step(self.run), History.of(self.run).position)

    def strike(self, detail: str, act: Callable[[], None], attempt: int = 0) -> Moment:
        """Do it, and remember how things stood just before."""
        before = self.moment(attempt)
        act()
        self.tries.append(Try(detail))
        return before

    def await_end(self, before: Moment, seconds: float = END_SECONDS) -> Try:
        """See the attempt end by itself; what does not is ended by force, the launcher too."""
        outcome = self.tries[-1]
        session = self.session
        outcome.by_itself = session.wait(lambda: not session.alive(before.attempt), seconds)
        if not outcome.by_itself:
            left = session.alive(before.attempt)
            outcome.problems.append(f"processes {left} still there after {seconds:.0f} s")
            for pid in left:
                signal_process(pid, signal.SIGUSR2)  # for the stacks, among what it prints
            time.sleep(1)
            session.end()
        outcome.end_seconds = time.time() - before.time
        for path in evidence.checkpoint_steps(self.run).values():
            outcome.problems += evidence.faults_of(path)
        return outcome

    def await_launcher(self, before: Moment) -> int:
        """See the launcher end after its processes; returns its exit code."""
        launcher = self.session.launcher
        if not self.session.wait(lambda: launcher.poll() is not None, END_SECONDS):
            self.tries[-1].by_itself = False
            self.tries[-1].problems.append("the launcher did not end")
            self.session.end()
        self.tries[-1].end_seconds = time.time() - before.time
        return launcher.wait()

    def await_resumption(self, before: Moment, expected: int | None = None) -> None:
        """See the run go on, and from where: the newest durable checkpoint, or step `expected`."""
        outcome = self.tries[-1]

        def goes_on() -> bool:
            return bool(History.of(self.run).starts_since(before.time)) or self.session.ended

        self.session.wait(goes_on, START_SECONDS)
        started = History.of(self.run).starts_since(before.time)
        if not started:
            outcome.problems.append(f"it did not go on: {_last_lines(self.session.output)}")
            self.session.end()
            return
        step = started[0]["step"]
        outcome.lost_steps = max(0, before.position - step)
        outcome.survived = step >= before.durable if expected is None else step == expected
        if not outcome.survived:
            wanted = before.durable if expected is None else expected
            outcome.problems.append(f"went on from step {step}, not from {wanted}")

    def finish(self, reference: Path, poisoned: bool = False) -> None:
        """Let the run come to its end and hold it against `reference`, the folder of a run that was not broken.

        `poisoned`: what was trained between a fault and its discovery is known to be wrong, and left behind.
        """
        session = self.session
        ended = session.wait(lambda: session.ended, START_SECONDS + self.rig.steps)
        code = session.launcher.poll()
        session.end()
        problems = [] if ended and code == 0 else [f"ended with {code}: {_last_lines(session.output)}"]
        problems = problems or evidence.differences(self.run, reference, poisoned)
        for each in self.tries:
            each.identical = not problems
        self.tries[-1].problems += problems[:5]

    def close(self) -> None:
        """End whatever is still there."""
        for session in self.sessions:
            session.end()


def _last_lines(text: str, count: int = 4) -> str:
    """For a message: what was said of errors, or the end of an output; what the launcher says of itself is left out."""
    lines = [line for line in text.split("=====")[0].splitlines() if line.strip() and "elastic" not in line]
    errors = [line for line in lines if re.match(r"(\[rank\d+\]: )?(error:|\w*Error\b)", line)]
    return " | ".join((errors or lines)[-count:])[-600:]

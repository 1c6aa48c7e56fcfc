"""Deaths: of one process, of all, of the launcher too, at any moment or at a given point of a save."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from megatron_yuan.drill import evidence
from megatron_yuan.drill.events import told
from megatron_yuan.drill.evidence import History
from megatron_yuan.drill.rig import SAVE_INTERVAL
from megatron_yuan.drill.session import signal_process
from megatron_yuan.drill.trial import START_SECONDS, Moment, Trial, Try


@dataclass(frozen=True)
class Point:
    """A write point of a rank."""

    rank: int
    when: str
    name: str


@dataclass(frozen=True)
class Stage:
    """What a fault has to work with besides the trial."""

    reference: Path
    """Folder of the run of the same layout that nothing befell."""
    step_seconds: float
    """Of that run, saves included."""
    tries: int
    slow_save_seconds: float = 60.0
    points: Sequence[Point] = field(default=(), repr=False)
    """Where to die."""


def kill_one(trial: Trial, stage: Stage) -> None:
    """SIGKILL to one process, at any moment of training; torchrun starts all again."""
    _kill_workers(trial, stage, lambda pids: [trial.draw.choice(pids)])


def kill_all(trial: Trial, stage: Stage) -> None:
    """SIGKILL to all processes of the run at once; torchrun starts all again."""
    _kill_workers(trial, stage, lambda pids: pids)


def _kill_workers(trial: Trial, stage: Stage, choose: Callable[[list[int]], list[int]]) -> None:
    session, since = trial.start(restarts=stage.tries), 0.0
    for attempt in range(stage.tries):
        trial.await_training(attempt, since)
        delay = trial.pause(random_delay(trial, stage))
        pids = [each["pid"] for each in session.started(attempt)]
        chosen = choose(pids)
        ranks = ", ".join(str(pids.index(pid)) for pid in chosen)

        def strike(chosen: list[int] = chosen) -> None:
            for pid in chosen:
                signal_process(pid, signal.SIGKILL)

        before = trial.strike(f"SIGKILL to rank {ranks}, {delay:.2f} s into training", strike, attempt)
        since = before.time
        trial.await_end(before)
        trial.await_resumption(before)
    trial.finish(stage.reference)


def kill_job(trial: Trial, stage: Stage) -> None:
    """SIGKILL to all processes and the launcher, as when a node goes down; the run is started again."""
    trial.start()
    since = 0.0
    for _ in range(stage.tries):
        trial.await_training(since=since)
        before = die_with_launcher(trial, stage)
        since = before.time
        trial.start()
        trial.await_resumption(before)
    trial.finish(stage.reference)


def die_with_launcher(trial: Trial, stage: Stage, what: str = "") -> Moment:
    """SIGKILL to everything after a random time."""
    delay, session = trial.pause(random_delay(trial, stage)), trial.session

    def strike() -> None:
        for pid in [session.launcher.pid, *session.alive()]:
            signal_process(pid, signal.SIGKILL)

    before = trial.strike(f"SIGKILL to all and the launcher, {delay:.2f} s into training{what}", strike)
    trial.await_end(before)
    return before


def kill_at_points(trial: Trial, stage: Stage) -> None:
    """SIGKILL before, halfway through or after a call that changes the disk, to that process or to all."""
    orders = [
        {
            "do": "die",
            "attempt": attempt,
            "rank": point.rank,
            "when": point.when,
            "point": point.name,
            "whole": trial.draw.random() < 0.5,
        }
        for attempt, point in enumerate(stage.points)
    ]
    session = trial.start(orders, restarts=len(orders))
    events = trial.folder / "events.jsonl"
    for attempt, order in enumerate(orders):
        trial.tries.append(Try(f"rank {order['rank']} {order['when']} {order['point']}"))

        def died(attempt: int = attempt) -> bool:
            return bool(told(events, "die", launch=0, attempt=attempt)) or session.ended

        session.wait(died, START_SECONDS)
        deaths = told(events, "die", launch=0, attempt=attempt)
        if not deaths:
            trial.tries[-1].problems.append("the run never came to that point")
            break
        durable = int(deaths[0]["durable"].removeprefix("iter_"))
        before = Moment(deaths[0]["time"], attempt, durable, History.of(trial.run).position)
        trial.await_end(before)
        if evidence.durable_step(trial.run) < durable:
            trial.tries[-1].problems.append("`latest` went back")
        trial.await_resumption(before)
    trial.finish(stage.reference)


def random_delay(trial: Trial, stage: Stage) -> float:
    """Seconds from the beginning of training on: within the time of two saves and the steps between them."""
    return trial.draw.uniform(0, 2 * SAVE_INTERVAL * stage.step_seconds)

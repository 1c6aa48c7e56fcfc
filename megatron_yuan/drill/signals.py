"""Signals that ask a run to stop, and one that freezes a part of it."""

from __future__ import annotations

import json
import signal
import time

from megatron_yuan.drill import evidence
from megatron_yuan.drill.events import told
from megatron_yuan.drill.evidence import History
from megatron_yuan.drill.kills import Stage, random_delay
from megatron_yuan.drill.session import signal_process
from megatron_yuan.drill.trial import END_SECONDS, START_SECONDS, Moment, Trial

LIVENESS_SECONDS = 10
_SLOW_POINT = "fsync iter.tmp/model/embedding.safetensors"


def terminate(trial: Trial, stage: Stage) -> None:
    """SIGTERM to the launcher, to all ranks or to one: the run saves, ends, and goes on when it is started again."""
    trial.start()
    since = 0.0
    for _ in range(stage.tries):
        trial.await_training(since=since)
        delay = trial.pause(random_delay(trial, stage))
        session = trial.session
        target = trial.draw.choice(["the launcher", "all ranks", "one rank"])
        pids = session.alive()
        chosen = {"the launcher": [session.launcher.pid], "all ranks": pids, "one rank": [trial.draw.choice(pids)]}
        before = _ask_to_stop(trial, chosen[target], f"SIGTERM to {target}, {delay:.2f} s into training")
        since = before.time
        _see_it_stopped(trial, before, END_SECONDS)
        trial.start()
        trial.await_resumption(before)
    trial.finish(stage.reference)


def terminate_slow_save(trial: Trial, stage: Stage) -> None:
    """SIGTERM to the launcher while a save takes long: the save is not broken off."""
    # On whichever replica's turn it is to write that file.
    slow = {"do": "slow", "when": "before", "point": _SLOW_POINT, "seconds": stage.slow_save_seconds}
    trial.start([slow])
    since, events = 0.0, trial.folder / "events.jsonl"
    for turn in range(stage.tries):
        session = trial.session
        trial.await_training(since=since)
        if not session.wait(lambda: bool(told(events, "slow", launch=session.launch)), START_SECONDS):  # noqa: B023
            raise RuntimeError("no save came to the place where it is slowed")
        delay = trial.draw.uniform(0, 0.5 * stage.slow_save_seconds)
        time.sleep(delay)
        detail = f"SIGTERM to the launcher, {delay:.1f} s into a save of {stage.slow_save_seconds:.0f} s"
        before = _ask_to_stop(trial, [session.launcher.pid], detail)
        since = before.time
        _see_it_stopped(trial, before, stage.slow_save_seconds + END_SECONDS)
        if evidence.durable_step(trial.run) <= before.durable:
            trial.tries[-1].problems.append("the save that was under way was broken off")
        trial.start([slow] if turn + 1 < stage.tries else [])
        trial.await_resumption(before)
    trial.finish(stage.reference)


def _ask_to_stop(trial: Trial, pids: list[int], detail: str) -> Moment:
    def strike() -> None:
        for pid in pids:
            signal_process(pid, signal.SIGTERM)

    return trial.strike(detail, strike)


def _see_it_stopped(trial: Trial, before: Moment, seconds: float) -> None:
    outcome = trial.await_end(before, seconds)
    trial.await_launcher(before)
    done, durable = History.of(trial.run).position, evidence.durable_step(trial.run)
    if durable != done:
        outcome.problems.append(f"step {done} was done, step {durable} is saved")
    status = json.loads((trial.run / "status.json").read_text()) if (trial.run / "status.json").exists() else {}
    if (status.get("state"), status.get("step")) != ("requeue", done):
        outcome.problems.append(f"status.json says {status}")


def freeze_one(trial: Trial, stage: Stage) -> None:
    """SIGSTOP to one process: the others notice, all end, and torchrun starts all again."""
    session, since = trial.start(restarts=stage.tries), 0.0
    for attempt in range(stage.tries):
        trial.await_training(attempt, since)
        delay = trial.pause(random_delay(trial, stage))
        chosen = trial.draw.choice(session.started(attempt))
        detail = f"SIGSTOP to rank {chosen['rank']}, {delay:.2f} s into training"
        before = trial.strike(detail, lambda: signal_process(chosen["pid"], signal.SIGSTOP), attempt)  # noqa: B023
        since = before.time
        trial.await_end(before, LIVENESS_SECONDS + END_SECONDS)
        if f"rank {chosen['rank']}" not in session.output:
            trial.tries[-1].problems.append(f"rank {chosen['rank']} was not named")
        trial.await_resumption(before)
    trial.finish(stage.reference)

"""Faults of arithmetic: a gradient that is not a number, and replicas that are not alike."""

from __future__ import annotations

import math

from megatron_yuan.drill.events import told
from megatron_yuan.drill.evidence import History
from megatron_yuan.drill.kills import Stage, die_with_launcher
from megatron_yuan.drill.rig import SAVE_INTERVAL
from megatron_yuan.drill.session import Order
from megatron_yuan.drill.trial import START_SECONDS, Moment, Trial, Try


def plant_nans(trial: Trial, stage: Stage) -> None:
    """A gradient that is not a number, on one rank: the step is skipped by all, and the run goes on; killed and started
    again, it ends as the same run that was not killed."""
    room = (trial.rig.steps - SAVE_INTERVAL) // stage.tries
    orders: list[Order] = [
        {
            "do": "nan",
            "rank": trial.draw.randrange(trial.layout.world_size),
            "step": SAVE_INTERVAL + 1 + turn * room + trial.draw.randrange(room),
            "summed": trial.draw.random() < 0.5,
        }
        for turn in range(stage.tries)
    ]
    unbroken = Trial(trial.folder / "unbroken", trial.rig, trial.layout, trial.draw, trial.flags)
    try:
        session = unbroken.start(orders)
        session.wait(lambda: session.ended, START_SECONDS + trial.rig.steps)
    finally:
        unbroken.close()
    trial.start(orders)
    trial.await_training()
    killed = die_with_launcher(trial, stage)
    kill, trial.tries[:] = trial.tries[0], []
    trial.start(orders)
    for each in orders:
        where = "after the sum over replicas" if each["summed"] else "in backward"
        trial.tries.append(Try(f"not a number in step {each['step']} on rank {each['rank']}, {where}"))
    trial.await_resumption(killed)
    trial.tries[-1].problems += kill.problems
    trial.finish(unbroken.run)
    records = {each["step"]: each for each in History.of(trial.run).steps()}
    for each, order in zip(trial.tries, orders, strict=True):
        record = records.get(order["step"], {})
        after = [records[step]["loss"] for step in records if step > order["step"]]
        finite = all(isinstance(loss, float) and math.isfinite(loss) for loss in after)
        each.by_itself = trial.rig.steps in records
        each.survived = bool(record.get("skipped")) and finite
        if not each.survived:
            each.problems.append(f"step {order['step']} was not skipped")


def flip_weights(trial: Trial, stage: Stage) -> None:
    """A bit of a weight turned on one replica: the run is stopped, and torchrun starts it again from sound weights."""
    room = (trial.rig.steps - 2 * SAVE_INTERVAL) // stage.tries
    orders: list[Order] = [
        {
            "do": "flip",
            "attempt": turn,
            "rank": trial.draw.randrange(trial.layout.world_size),
            "step": SAVE_INTERVAL + 1 + turn * room + trial.draw.randrange(room),
        }
        for turn in range(stage.tries)
    ]
    session = trial.start(orders, restarts=stage.tries)
    events = trial.folder / "events.jsonl"
    for attempt, order in enumerate(orders):
        trial.tries.append(Try(f"a weight's bit turned on rank {order['rank']} in step {order['step']}"))

        def flipped(attempt: int = attempt) -> bool:
            return bool(told(events, "flip", attempt=attempt)) or session.ended

        session.wait(flipped, START_SECONDS)
        flips = told(events, "flip", attempt=attempt)
        if not flips:
            trial.tries[-1].problems.append("the run never came to that step")
            break
        before = Moment(flips[0]["time"], attempt, trial.moment().durable, order["step"])
        outcome = trial.await_end(before)
        if flips[0]["tensor"] not in session.output or "rank" not in session.output:
            outcome.problems.append(f"{flips[0]['tensor']} was not named")
        trial.await_resumption(before)
    trial.finish(stage.reference, poisoned=True)

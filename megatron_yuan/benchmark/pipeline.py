"""How near does the pipeline come to its schedule's ideal? Real gloo processes, their passes timed one by one.

The ideal of a schedule: each pass begins as soon as its stage is free and its input is made; it takes the mean time
measured of its stage and chunk; messages cost nothing. With even stages its efficiency is m v / (m v + p - 1).

- Where each process has a core of its own, by the clock: from the first pass to the last.
- With more processes than cores, by replay: CPU seconds of each pass and of what lies between passes (exchanges and
  their copies, all threads of the process) are played in the schedule's own order of exchanges, as on cores enough.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from megatron_yuan.benchmark.planned import random_batches, train_step
from megatron_yuan.benchmark.processes import run_processes
from megatron_yuan.config.fields import with_values
from megatron_yuan.config.schema import Config
from megatron_yuan.config.validate import validate, validate_world
from megatron_yuan.parallel import topology as processes
from megatron_yuan.parallel.watch.pulse import Position
from megatron_yuan.planning.order import Pass, order_of
from megatron_yuan.planning.program import Compute, program
from megatron_yuan.planning.simulation import Await, Join, Meeting, Step, Work, simulate
from megatron_yuan.training.setup import build_training_model

STAGES = (2, 4)
MICROBATCHES = (4, 8, 16, 32)
VIRTUAL = (1, 2)
WARM_STEPS = 1
PHASES = {"data": "forward", "forward": "forward", "backward": "backward"}


@dataclass
class Taken:
    """One pass of a process, and what came after it until the next."""

    begin: float
    end: float = 0.0
    """By the clock, which all processes share."""
    cpu: float = 0.0
    """Seconds of the process's CPU time within it."""
    after: float = 0.0
    """Likewise, between it and the next one."""


@dataclass
class PassClock:
    """Listens to a pulse: the passes of a step, in order."""

    passes: list[Taken] = field(default_factory=list[Taken])
    _kind: str | None = None
    _cpu: float = 0.0

    def hear(self, position: Position) -> None:
        """A beat."""
        now, cpu = time.perf_counter(), time.process_time()
        kind = PHASES.get(position.phase)
        if kind is not None and kind == self._kind:
            return  # the same pass goes on
        if self.passes:
            last = self.passes[-1]
            if self._kind is None:
                last.after += cpu - self._cpu
            else:
                last.cpu, last.end = cpu - self._cpu, now
        if kind is not None:
            self.passes.append(Taken(now))
        self._kind, self._cpu = kind, cpu


@dataclass(frozen=True)
class Efficiency:
    """Of one layout."""

    stages: int
    virtual: int
    microbatches: int
    replayed: bool
    seconds: float
    """Of the pipeline, first pass to last; median of the steps."""
    ideal_seconds: float
    busy: float
    """Share of the processes' time in passes."""

    @property
    def of_ideal(self) -> float:
        """1: as fast as the schedule can be at the measured stage times."""
        return self.ideal_seconds / self.seconds

    @property
    def even(self) -> float:
        """The busy share of even stages and free messages."""
        work = self.microbatches * self.virtual
        return work / (work + self.stages - 1)


def measure(config: Config, rounds: int) -> Iterator[Efficiency]:
    """Every schedule, so many steps each."""
    cores = len(os.sched_getaffinity(0))
    for stages in STAGES:
        for virtual in VIRTUAL:
            for microbatches in MICROBATCHES:
                values = {
                    "pipeline_model_parallel_size": stages,
                    "virtual_pipeline_model_parallel_size": virtual,
                    "global_batch_size": microbatches * config.training.micro_batch_size,
                    "device": "cpu",
                }
                layout = with_values(config, values)
                validate(layout)
                by_rank = run_processes(timed_passes, stages, validate_world(layout, stages), rounds)
                steps = [list(step) for step in zip(*by_rank, strict=True)]
                yield efficiency(steps, virtual, microbatches, replayed=stages > cores)


def timed_passes(config: Config, rounds: int) -> list[list[Taken]]:
    """In a process of a layout: its passes, step by step."""
    topology = processes.start(config)
    try:
        model, steps = build_training_model(config, topology), list[list[Taken]]()
        for step in range(WARM_STEPS + rounds):
            batches = random_batches(config, topology, step)
            clock = PassClock()
            topology.barrier()
            topology.pulse.listeners = [clock.hear]
            train_step(model, config, topology, batches, step + 1)
            topology.pulse.listeners = []
            steps.append(clock.passes)
        return steps[WARM_STEPS:]
    finally:
        processes.stop()


def efficiency(
    steps: Sequence[Sequence[Sequence[Taken]]], virtual: int, microbatches: int, replayed: bool
) -> Efficiency:
    """Of what was measured, by step, stage and pass."""
    stages = len(steps[0])
    orders = [order_of(stage, stages, virtual, microbatches).passes for stage in range(stages)]
    means = [_means(orders[stage], [step[stage] for step in steps], replayed) for stage in range(stages)]
    free = [list(_as_soon_as_may_be(orders[stage], means[stage], stage, stages, virtual)) for stage in range(stages)]
    ideal = simulate(free, _meetings(free, parties=1)).seconds
    if replayed:
        played = [_replay(step, orders, virtual, microbatches) for step in steps]
    else:
        played = [
            max(p.end for each in step for p in each) - min(p.begin for each in step for p in each) for step in steps
        ]
    busy = sum(sum(means[stage][_kind(each)] for each in orders[stage]) for stage in range(stages))
    seconds = statistics.median(played)
    return Efficiency(stages, virtual, microbatches, replayed, seconds, ideal, busy / (stages * seconds))


def _kind(work: Pass) -> tuple[bool, int]:
    return work.forward, work.chunk


def _means(order: Sequence[Pass], steps: Sequence[Sequence[Taken]], replayed: bool) -> dict[tuple[bool, int], float]:
    """Seconds of a pass by its direction and chunk."""
    found: dict[tuple[bool, int], list[float]] = {}
    for passes in steps:
        for work, taken in zip(order, passes, strict=True):
            found.setdefault(_kind(work), []).append(taken.cpu if replayed else taken.end - taken.begin)
    return {kind: statistics.fmean(seconds) for kind, seconds in found.items()}


def _as_soon_as_may_be(
    order: Sequence[Pass], seconds: Mapping[tuple[bool, int], float], stage: int, stages: int, virtual: int
) -> Iterator[Step]:
    """A stage's passes, each waiting for its input alone; what it makes is there for the next at once."""
    last = stages * virtual - 1
    for work in order:
        run = work.chunk * stages + stage
        before = run - 1 if work.forward else run + 1
        if 0 <= before <= last:
            yield Await(((work.forward, before, work.microbatch),))
        elif not work.forward:
            yield Await(((True, run, work.microbatch),))
        yield Work(seconds[_kind(work)])
        yield Join(((work.forward, run, work.microbatch),), waits=False)


def _replay(
    step: Sequence[Sequence[Taken]], orders: Sequence[Sequence[Pass]], virtual: int, microbatches: int
) -> float:
    stages, played = len(step), []
    for stage, passes in enumerate(step):
        taken = dict(zip(orders[stage], passes, strict=True))
        steps, last = list[Step](), None
        for action in program(stage, stages, virtual, microbatches):
            if isinstance(action, Compute):
                if last is not None:
                    steps.append(Work(last.after))
                if action.needs is not None:
                    steps.append(Await((action.needs,)))
                steps.append(Work(taken[action.work].cpu))
                last = taken[action.work]
            else:
                steps.append(Join(action.messages, action.waits))
        played.append(steps)
    return simulate(played, _meetings(played, parties=2)).seconds


def _meetings(programs: Sequence[Sequence[Step]], parties: int) -> dict[Any, Meeting]:
    return {
        key: Meeting(0.0, parties)
        for steps in programs
        for each in steps
        if isinstance(each, Join)
        for key in each.meetings
    }


def report(config: Config, rounds: int) -> dict[str, Any]:
    """Print and return the table."""
    print(f"{'schedule':<24}{'microbatches':>13}{'seconds':>10}{'ideal':>10}{'of ideal':>10}{'busy':>8}{'even':>8}  by")
    result: dict[str, Any] = {}
    for found in measure(config, rounds):
        name = f"{found.stages} stages" + (f" x {found.virtual} virtual" if found.virtual > 1 else "")
        by = "replay of CPU time" if found.replayed else "the clock"
        print(
            f"{name:<24}{found.microbatches:13}{found.seconds:10.3f}{found.ideal_seconds:10.3f}{found.of_ideal:10.1%}"
            f"{found.busy:8.1%}{found.even:8.1%}  {by}",
            flush=True,
        )
        result[f"{name}, {found.microbatches}"] = vars(found) | {"of_ideal": found.of_ideal}
    return result

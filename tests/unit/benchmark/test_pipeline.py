"""How near a pipeline comes to its ideal: the arithmetic, and that real passes are told apart."""

from __future__ import annotations

import pytest

from megatron_yuan.benchmark.pipeline import Efficiency, Taken, efficiency, timed_passes
from megatron_yuan.benchmark.processes import run_processes
from megatron_yuan.config.fields import with_values
from megatron_yuan.config.presets import preset
from megatron_yuan.planning.order import order_of
from megatron_yuan.planning.program import Exchange, program
from megatron_yuan.planning.simulation import Await, Join, Meeting, Work, simulate


def played(stages: int, virtual: int, microbatches: int, slack: float, replayed: bool = False) -> Efficiency:
    """Even stages whose passes take 1 second and `slack` besides, in the schedule's own order."""
    programs = [
        [
            step
            for a in program(s, stages, virtual, microbatches)
            for step in (
                [Join(a.messages, a.waits)]
                if isinstance(a, Exchange)
                else [Await((a.needs,) if a.needs else ()), Work(1 + slack)]
            )
        ]
        for s in range(stages)
    ]
    meetings = {
        key: Meeting(0.0, 2) for steps in programs for each in steps if isinstance(each, Join) for key in each.meetings
    }
    spans = simulate(programs, meetings).spans
    step = [[Taken(begin, end - slack, cpu=1.0, after=slack) for _, begin, end in of_stage] for of_stage in spans]
    return efficiency([step], virtual, microbatches, replayed)


@pytest.mark.parametrize(("stages", "microbatches"), [(2, 4), (4, 4), (4, 16), (3, 7)])
def test_even_stages_without_slack_are_as_fast_as_the_formula_of_1f1b(stages: int, microbatches: int) -> None:
    found = played(stages, 1, microbatches, slack=0.0)
    assert found.of_ideal == pytest.approx(1.0)
    assert found.busy == pytest.approx(found.even) == microbatches / (microbatches + stages - 1)


def test_the_ideal_of_the_interleaved_schedule_has_its_smaller_bubble() -> None:
    found = played(2, 2, 8, slack=0.0)
    assert found.ideal_seconds == pytest.approx(2 * 2 * 8 + 2)
    assert found.even == 16 / 17


@pytest.mark.parametrize("replayed", [False, True])
def test_time_between_passes_is_what_is_missing_from_the_ideal(replayed: bool) -> None:
    assert played(2, 1, 32, slack=0.25, replayed=replayed).of_ideal == pytest.approx(0.8, abs=0.01)


def test_passes_of_real_processes_are_told_apart() -> None:
    values = {
        "num_layers": 4, "seq_length": 32, "micro_batch_size": 1, "global_batch_size": 4, "device": "cpu",
        "pipeline_model_parallel_size": 2, "virtual_pipeline_model_parallel_size": 2,
    }  # fmt: skip
    for stage, steps in enumerate(run_processes(timed_passes, 2, with_values(preset("tiny"), values), 2)):
        assert [len(passes) for passes in steps] == [len(order_of(stage, 2, 2, 4).passes)] * 2
        assert all(0 < each.cpu <= 2 * (each.end - each.begin) for passes in steps for each in passes)

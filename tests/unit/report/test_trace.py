"""What is found in a trace, on schedules drawn by hand."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from megatron_yuan.parallel.trace import Span
from megatron_yuan.report.trace.findings import findings
from megatron_yuan.report.trace.perfetto import to_perfetto
from megatron_yuan.report.trace.timeline import to_page
from megatron_yuan.report.trace.trace import KINDS, Rank, Trace, kind_of


def one_f_one_b(stages: int, microbatches: int, replicas: int = 1, slow: int | None = None) -> Trace:
    """Passes of 1 s each way, as early as they can be; `slow` takes twice as long, and no one waits for it."""
    done: dict[tuple[int, str, int], float] = {}
    orders = []
    for stage in range(stages):
        warm_up = min(stages - stage - 1, microbatches)
        order = [("forward", m) for m in range(warm_up)]
        for m in range(microbatches - warm_up):
            order += [("forward", m + warm_up), ("backward", m)]
        orders.append(order + [("backward", m) for m in range(microbatches - warm_up, microbatches)])
    at, free = [0] * stages, [0.0] * stages
    while any(at[stage] < len(orders[stage]) for stage in range(stages)):
        for stage in range(stages):
            if at[stage] == len(orders[stage]):
                continue
            phase, m = orders[stage][at[stage]]
            before = stage - 1 if phase == "forward" else stage + 1
            ready = done.get((before, phase, m)) if 0 <= before < stages else 0.0
            if ready is None:
                continue
            done[stage, phase, m] = free[stage] = max(free[stage], ready) + 1.0
            at[stage] += 1
    ranks = []
    for replica in range(replicas):
        for stage in range(stages):
            number, longer = replica * stages + stage, 2.0 if slow == replica * stages + stage else 1.0
            spans = [
                Span(end - 1.0, longer, 7, phase, m + 1, False) for (s, phase, m), end in done.items() if s == stage
            ]
            ranks.append(Rank(number, stage, replica, "h", sorted(spans)))
    return Trace(ranks, stages, 1, microbatches)


@pytest.mark.parametrize(("stages", "microbatches"), [(1, 4), (2, 4), (4, 8), (3, 2)])
def test_an_even_schedule_has_the_bubble_of_the_theory(stages: int, microbatches: int) -> None:
    found = findings(one_f_one_b(stages, microbatches))
    assert found.bubble == pytest.approx(found.ideal_bubble) == (stages - 1) / (microbatches + stages - 1)
    assert found.stage_seconds == pytest.approx([2.0] * stages) and not found.slow


def test_a_slow_replica_is_named() -> None:
    found = findings(one_f_one_b(2, 4, replicas=3, slow=3))
    assert [name for name, _ in found.slow] == ["rank 3: stage 1, replica 1"]
    assert "is slow: 2.00 x the median" in found.lines()[1]


def test_a_step_that_was_left_out_does_not_make_the_others_look_faster() -> None:
    trace = one_f_one_b(2, 4)
    left_out = [replace(rank, spans=[*rank.spans, Span(99.0, 0.1, 8, "begin", None, False)]) for rank in trace.ranks]
    assert findings(replace(trace, ranks=left_out)) == findings(trace)


def test_perfetto_gets_every_span_with_its_rank_and_microseconds() -> None:
    trace = one_f_one_b(2, 4)
    events = json.loads(to_perfetto(trace))["traceEvents"]
    spans = [event for event in events if event["ph"] == "X"]
    assert len(spans) == 16 and {event["dur"] for event in spans} == {1e6}
    assert {event["pid"] for event in spans} == {0, 1} and min(event["ts"] for event in spans) == 0
    names = [event["args"]["name"] for event in events if event["name"] == "process_name"]
    assert names == ["rank 0: stage 0, replica 0 on h", "rank 1: stage 1, replica 0 on h"]


def test_the_page_fetches_nothing() -> None:
    trace = one_f_one_b(2, 4)
    page = to_page(trace, findings(trace))
    assert "http" not in page and "src=" not in page and "Every rank in step 7" in page


def test_every_phase_of_the_schedules_has_its_kind() -> None:
    phases = {
        "forward": "forward",
        "backward": "backward",
        "forward send": "send",
        "backward recv": "receive",
        "forward send backward recv": "send and receive",
        "exchange": "send and receive",
        "all grads sync": "all-reduce",
        "gradient norm (agreement)": "all-reduce",
        "schedule (sum over stages)": "all-reduce",
        "optimizer": "optimizer",
        "data": "data",
        "schedule": "other",
    }
    assert {phase: kind_of(phase) for phase in phases} == phases and set(phases.values()) == set(KINDS)

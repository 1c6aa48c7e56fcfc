from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from dataclasses import replace

import pytest

from megatron_yuan.config.fields import with_values
from megatron_yuan.config.schema import Config
from megatron_yuan.planning.costs import Costs, PassSeconds
from megatron_yuan.planning.order import order_of
from megatron_yuan.planning.program import program
from megatron_yuan.planning.simulation import Await, Cores, Join, Meeting, Work, simulate
from megatron_yuan.planning.step_time import step_time

NOTHING = PassSeconds(0.0, 0.0)
COSTS = Costs(
    layer=PassSeconds(1.0, 2.0), embedding=NOTHING, head=NOTHING, zero=0.0, norm=0.0, optimizer=0.0,
    message_latency=0.0, message=0.0, reduce_latency=0.0, reduce=0.0, tied=0.0, cores=None, source="made up",
)  # fmt: skip


def config_of(stages: int, virtual: int, microbatches: int, **values: object) -> Config:
    shape = {
        "num_layers": stages * virtual,
        "pipeline_model_parallel_size": stages,
        "virtual_pipeline_model_parallel_size": virtual,
        "global_batch_size": microbatches,
    }
    return with_values(Config(), shape | values)


@pytest.mark.parametrize(("stages", "virtual"), [(1, 1), (2, 1), (4, 1), (8, 1), (2, 2), (4, 2), (4, 3)])
@pytest.mark.parametrize("microbatches", [8, 16, 32])
def test_even_stages_take_the_time_of_the_theory(stages: int, virtual: int, microbatches: int) -> None:
    step = step_time(config_of(stages, virtual, microbatches), 1, COSTS)
    assert step.seconds == pytest.approx(3 * (virtual * microbatches + stages - 1))
    assert step.bubble == pytest.approx(step.ideal_bubble)


def test_fewer_microbatches_than_stages_go_through_one_after_another() -> None:
    assert step_time(config_of(4, 1, 2), 1, COSTS).seconds == pytest.approx(3 * (4 + 1))


def test_a_slow_stage_holds_up_all() -> None:
    slow = replace(COSTS, head=PassSeconds(1.0, 2.0))
    step = step_time(config_of(4, 1, 32), 1, slow)
    assert step.seconds == pytest.approx(32 * 6 + 3 * 3)
    assert step.slowest_share == pytest.approx(2 / 5)


def test_what_is_recomputed_costs_another_forward_pass() -> None:
    recomputed = config_of(1, 1, 4, num_layers=4, recompute_granularity="full", recompute_num_layers=2)
    assert step_time(recomputed, 1, COSTS).seconds == pytest.approx(4 * (4 * 3 + 2))


def test_messages_are_waited_for_at_both_ends() -> None:
    late = replace(COSTS, message_latency=0.5)
    # Two stages, one microbatch: forward, message, forward, backward, message, backward.
    assert step_time(config_of(2, 1, 1), 1, late).seconds == pytest.approx(1 + 0.5 + 1 + 2 + 0.5 + 2)


@pytest.mark.parametrize(("stages", "virtual"), [(1, 1), (2, 1), (3, 1), (2, 2), (2, 3), (3, 2)])
def test_the_busiest_stage_sends_the_messages_of_its_program(stages: int, virtual: int) -> None:
    step = step_time(config_of(stages, virtual, 6), 1, COSTS)
    sent = [
        sum(
            message.to != stage
            for each in program(stage, stages, virtual, 6)
            for message in getattr(each, "messages", ())
        )
        for stage in range(stages)
    ]
    assert step.sent_bytes == max(sent) * step.message_bytes


def test_an_all_reduce_hides_behind_the_backward_pass_as_far_as_buckets_allow() -> None:
    config = config_of(1, 1, 2, num_layers=4)
    parameters = step_time(config, 2, COSTS).reduced_bytes
    slow = replace(COSTS, reduce=4.0 / parameters)  # with two replicas each byte is sent once: 4 s in all
    step = step_time(config, 2, slow)
    assert step.reduce_seconds == pytest.approx(4)
    assert step.seconds == pytest.approx(12 + 1)  # a bucket a layer, of which the last one shows
    assert step.exposed_seconds == pytest.approx(1)
    apart = with_values(config, {"overlap_grad_reduce": False})
    assert step_time(apart, 2, slow).seconds == pytest.approx(12 + 4)


def test_processes_share_cores() -> None:
    programs = [[Work(2.0)], [Work(2.0)], [Work(2.0)], [Work(2.0)]]
    assert simulate(programs, {}).seconds == pytest.approx(2)
    assert simulate(programs, {}, Cores(2)).seconds == pytest.approx(4)
    assert simulate(programs[:2], {}, Cores(2, together=0.8)).seconds == pytest.approx(2.5)
    assert simulate(programs[:1], {}, Cores(2, together=0.8)).seconds == pytest.approx(2)


def test_meetings_of_one_queue_come_one_after_another() -> None:
    meetings: dict[Hashable, Meeting] = {key: Meeting(1.0, 1, queue="link") for key in "ab"}
    assert simulate([[Join(("a", "b"), waits=False), Work(0.5), Await(("a", "b"))]], meetings).seconds == 2.0


def test_processes_that_wait_for_each_other_for_ever_are_our_bug() -> None:
    with pytest.raises(AssertionError, match="wait for ever"):
        simulate([[Join(("a",))], [Work(1.0)]], {"a": Meeting(0.0, 2)})


def test_kept_microbatches_are_those_of_the_warmup_and_one_more() -> None:
    assert [order_of(s, 4, 1, 8).in_flight([1]).total() for s in range(4)] == [4, 3, 2, 1]
    # Interleaved, 2 stages x 2 chunks: the first keeps 2 + 2 x 1 + 1 chunk passes, the last 2 + 1.
    assert [dict(order_of(s, 2, 2, 8).in_flight([1, 1])) for s in range(2)] == [{0: 3, 1: 2}, {0: 2, 1: 1}]


def test_of_unequal_chunks_the_kept_passes_are_those_of_the_fullest_moment() -> None:
    # The last stage, once its first microbatch is back: three of the first chunk, the heavier, none of the second.
    assert order_of(1, 2, 2, 8).in_flight([3, 1]) == Counter({0: 3})

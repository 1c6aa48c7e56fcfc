"""The order in which the planner thinks that stages compute is the library's own."""

from __future__ import annotations

from typing import Any

import pytest
from megatron.core.pipeline_parallel.schedules import get_pp_rank_microbatches, get_schedule_table

from megatron_yuan.planning.order import order_of


class Group:
    def __init__(self, rank: int, size: int) -> None:
        self._rank, self._size = rank, size

    def rank(self) -> int:
        return self._rank

    def size(self) -> int:
        return self._size


class Place:
    """What the library asks a stage's communicator for."""

    def __init__(self, stage: int, stages: int, virtual: int) -> None:
        self.pp_group = Group(stage, stages)
        self.virtual_pipeline_model_parallel_size = virtual if virtual > 1 else None


SHAPES = [(2, 1, 1), (2, 1, 4), (4, 1, 3), (4, 1, 16), (2, 2, 2), (2, 2, 8), (4, 2, 4), (4, 3, 12), (3, 4, 6)]


@pytest.mark.parametrize(("stages", "virtual", "microbatches"), SHAPES)
def test_each_stage_warms_up_as_the_library_says(stages: int, virtual: int, microbatches: int) -> None:
    for stage in range(stages):
        place: Any = Place(stage, stages, virtual)
        total, _, warmup, _ = get_pp_rank_microbatches(microbatches, virtual, stages, p2p_communicator=place)
        order = order_of(stage, stages, virtual, microbatches)
        assert (len(order.forwards), order.warmup) == (total, warmup)


@pytest.mark.parametrize(("stages", "virtual", "microbatches"), [*SHAPES, (4, 2, 6)])
def test_chunks_take_turns_as_in_the_librarys_table(stages: int, virtual: int, microbatches: int) -> None:
    table = get_schedule_table(microbatches, virtual, stages)
    order = order_of(0, stages, virtual, microbatches)
    assert [(work.microbatch, work.chunk) for work in order.forwards] == table
    assert [(work.microbatch, virtual - 1 - work.chunk) for work in order.backwards] == table

"""Processes of one attempt meet each other, and nobody who is dead."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch.distributed as dist

from megatron_yuan.errors import ParallelError
from megatron_yuan.parallel.meeting import meet

PATIENCE = timedelta(seconds=20)


@pytest.fixture
def store(monkeypatch):
    """The launcher's."""
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(server.port))
    return server


def everyone(world_size: int):
    with ThreadPoolExecutor(world_size) as pool:
        return [*pool.map(lambda rank: meet(rank, world_size, PATIENCE), range(world_size))]


def test_all_ranks_share_their_keys(store):
    stores = everyone(3)
    stores[1].set("address", "here")
    assert all(each.get("address") == b"here" for each in stores)


def test_a_new_attempt_sees_nothing_of_the_one_before(store):
    before = everyone(3)
    before[0].set("address", "of the dead")
    after = everyone(3)
    assert not any(each.check(["address"]) for each in after)


def test_a_question_left_by_the_dead_keeps_nobody_waiting(store):
    with pytest.raises(ParallelError, match="rank 1 has waited"):
        meet(1, 2, timedelta(seconds=0.2))
    first, second = everyone(2)
    first.set("a", "1")
    assert second.get("a") == b"1"


def test_ranks_that_do_not_come_are_named(store):
    with pytest.raises(ParallelError, match=r"ranks \[1, 2\]"):
        meet(0, 3, timedelta(seconds=0.2))

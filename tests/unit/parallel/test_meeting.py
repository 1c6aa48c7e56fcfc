"""Processes of one attempt meet each other, and nobody who is dead."""

from __future__ import annotations

import socket
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch.distributed as dist

from megatron_yuan.errors import ParallelError
from megatron_yuan.parallel.launcher import meeting_place
from megatron_yuan.parallel.meeting import meet
from tests.processes import free_port

PATIENCE = timedelta(seconds=20)


@pytest.fixture
def store(monkeypatch):
    """The launcher's."""
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(server.port))
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("RANK", "0")
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


@pytest.fixture
def alone(monkeypatch):
    """A launcher that keeps no store."""
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    for name, value in {
        "RANK": "0",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def test_without_a_launchers_store_rank_0_keeps_one(alone):
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda rank: meet(rank, 2, PATIENCE), range(2))
        second.set("address", "here")
        assert first.get("address") == b"here"


def test_who_waits_in_vain_for_rank_0_says_in_time_where_it_looked(alone):
    begun = time.monotonic()
    with pytest.raises(ParallelError, match=r"rank 1 has waited .* at MASTER_ADDR 127.0.0.1.*refused.*\n.*timeout-min"):
        meet(1, 2, timedelta(seconds=2))
    alone.setenv("MASTER_ADDR", "no-such-host.invalid")
    with pytest.raises(ParallelError, match=r"MASTER_ADDR no-such-host.invalid"):
        meet(1, 2, timedelta(seconds=2))
    assert time.monotonic() - begun < 12


def test_rank_0_names_those_who_do_not_come_and_a_port_that_is_taken(alone):
    with pytest.raises(ParallelError, match=r"rank 0 has waited .* for the ranks \[1\]"):
        meet(0, 2, timedelta(seconds=1))
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        alone.setenv("MASTER_PORT", str(taken.getsockname()[1]))
        with pytest.raises(ParallelError, match=r"MASTER_PORT \d+ \(.*\)\.\nFix: another MASTER_PORT"):
            meet(0, 2, timedelta(seconds=1))


def test_rank_0_that_was_given_another_address_than_its_own_says_so_without_a_page_of_torchs(alone, capfd):
    alone.setenv("MASTER_ADDR", "no-such-host.invalid")
    with pytest.raises(
        ParallelError, match=r"\[1\].*\n.*that they reach MASTER_ADDR no-such-host.invalid and that it is"
    ):
        meet(0, 2, timedelta(seconds=1))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"RANK": None}, "RANK is not set"),
        ({"RANK": "0", "MASTER_ADDR": None}, "MASTER_ADDR is not set"),
        ({"RANK": "0", "MASTER_PORT": ""}, "MASTER_PORT is not set"),
        ({"RANK": "0", "MASTER_PORT": "x"}, "MASTER_PORT is 'x'"),
        ({"RANK": "0", "MASTER_PORT": "99999"}, "MASTER_PORT is '99999': .* 1 to 65535"),
        ({"RANK": "2"}, "RANK is 2, but WORLD_SIZE is 2"),
        ({"RANK": "-1"}, "RANK is '-1'"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two'"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE is '0'"),
    ],
)
def test_a_launchers_variables_that_are_missing_or_wrong_are_named(alone, environment, words):
    for name, value in environment.items():
        alone.delenv(name, raising=False) if value is None else alone.setenv(name, value)
    with pytest.raises(ParallelError, match=words):
        meeting_place()

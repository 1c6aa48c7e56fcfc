"""Connections between ranks, within one process."""

from __future__ import annotations

import contextlib
import os
import socket
import time

import pytest

from megatron_yuan.parallel.watch.link import Heard, Hub, Link, Member

TOKEN = "t"


@pytest.fixture(params=[True, False], ids=["loopback", "network"])
def hub(request):
    hub = Hub(TOKEN, loopback=request.param)
    yield hub
    hub.close()


def heard_by(link: Link, count: int, seconds: float = 5.0) -> list[Heard]:
    heard: list[Heard] = []
    deadline = time.monotonic() + seconds
    while len(heard) < count and time.monotonic() < deadline:
        heard.extend(link.exchange(0.1))
    return heard


def join(hub: Hub, rank: int) -> Member:
    member = Member(["127.0.0.1"], hub.port, TOKEN, rank)
    assert [each.rank for each in heard_by(hub, 1)] == [rank]
    return member


def test_what_one_says_the_other_hears_and_the_end_of_a_process_is_heard_at_once(hub):
    member = join(hub, 3)
    member.send({"beats": 1})
    member.send({"beats": 2})
    assert heard_by(hub, 2) == [Heard(3, {"beats": 1}), Heard(3, {"beats": 2})]
    hub.send({"finding": "x"})
    assert heard_by(member, 1) == [Heard(0, {"finding": "x"})]
    member.close()
    assert heard_by(hub, 1) == [Heard(3, None)]


STRANGERS = {
    "browser": b"GET / HTTP/1.1\r\n\r\n",
    "guess": b'{"token": "guess", "rank": 1}\n',
    "list": b"[]\n",
    "flood": b"x" * 70_000,
}


@pytest.mark.parametrize("words", STRANGERS.values(), ids=STRANGERS)
def test_a_stranger_is_shut_out_and_not_heard(hub, words):
    with socket.create_connection(("127.0.0.1", hub.port)) as stranger:
        stranger.sendall(words)
        assert heard_by(hub, 1, seconds=0.3) == []
        stranger.settimeout(1)
        with contextlib.suppress(ConnectionResetError):
            assert stranger.recv(1) == b""
    join(hub, 1).close()


def test_a_forked_worker_that_outlives_its_trainer_does_not_keep_the_connection_open(hub):
    member = join(hub, 1)
    child = os.fork()
    if child == 0:
        time.sleep(30)
        os._exit(0)
    try:
        member.close()
        assert heard_by(hub, 1) == [Heard(1, None)]
        assert hub.exchange(0.0) == []
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)


def test_another_thread_can_end_the_waiting(hub):
    started = time.monotonic()
    hub.wake()
    assert hub.exchange(30.0) == [] and time.monotonic() - started < 5

from __future__ import annotations

import logging
import threading
from functools import partial

import pytest

from megatron_yuan.checkpoint import work
from megatron_yuan.checkpoint.work import Progress, Stopped, on_threads, thread_count


def test_results_come_back_under_their_names() -> None:
    assert on_threads({str(each): partial(pow, each, 2) for each in range(20)}, Progress("squaring", 0)) == {
        str(each): each**2 for each in range(20)
    }


def test_the_first_failure_stops_the_rest_and_is_the_one_that_is_raised() -> None:
    progress, others_began = Progress("writing", 10), threading.Event()

    def fail() -> None:
        others_began.wait(10)
        raise OSError("the disk is on fire")

    def go_on() -> None:
        while True:
            others_began.set()
            progress.count(1)

    with pytest.raises(OSError, match="on fire"):
        on_threads({"a": fail, "b": go_on, "c": go_on}, progress, threads=2)
    with pytest.raises(Stopped):
        progress.count(1)


def test_long_work_says_how_far_it_is_and_counts_as_alive_only_while_it_moves(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(work, "SAY_EVERY", 0.02)
    beats: list[int] = []
    progress = Progress("writing iter_0000100", 4_000_000_000, lambda: beats.append(progress.done))
    stand_still = threading.Event()

    def write() -> None:
        progress.count(1_000_000_000)
        stand_still.wait(0.3)

    on_threads({"file": write}, progress)
    assert "writing iter_0000100: 1.00 of 4.00 GB" in caplog.text and "GB/s" in caplog.text
    assert caplog.text.count("1.00 of 4.00") > 2 and beats == [1_000_000_000]
    progress.count(3_000_000_000)
    assert "waiting for the disk" in str(progress)


def test_ranks_of_one_host_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work.os, "sched_getaffinity", lambda _: set(range(96)))
    for ranks, threads in (("1", 8), ("16", 6), ("96", 2)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
        assert thread_count() == threads

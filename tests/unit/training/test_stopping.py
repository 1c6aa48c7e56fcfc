"""A session ends in good order by a signal or by its time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from megatron_yuan.training.stopping import REASONS, Stopping


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP", "SIGQUIT"])
def test_a_signal_becomes_a_vote_and_the_process_goes_on(name):
    with Stopping() as stopping:
        assert Stopping.verdict(stopping.votes()) is None
        os.kill(os.getpid(), signal.Signals[name])
        assert Stopping.verdict(stopping.votes()) == name


def test_one_vote_among_many_ranks_is_enough():
    nobody, somebody = [0.0] * len(REASONS), [float(reason == "SIGUSR1") for reason in REASONS]
    assert Stopping.verdict([a + b for a, b in zip(nobody, somebody, strict=True)]) == "SIGUSR1"
    assert Stopping.verdict(nobody) is None


def test_the_duration_counts_from_the_making_and_not_by_the_clock_on_the_wall():
    now = [1000.0]
    stopping = Stopping(exit_duration_in_mins=2, clock=lambda: now[0])
    now[0] += 119
    assert Stopping.verdict(stopping.votes()) is None
    now[0] += 1
    assert Stopping.verdict(stopping.votes()) == "exit-duration-in-mins"


def test_handlers_of_before_are_put_back():
    before = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)]
    with Stopping():
        assert signal.getsignal(signal.SIGTERM) != before[0]
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)] == before


@pytest.mark.parametrize(
    ("signals", "environment", "code"),
    [
        (["SIGINT", "SIGINT"], {}, 130),
        (["SIGINT", "SIGTERM"], {}, 0),
        (["SIGINT", "SIGTERM"], {"TORCHELASTIC_RUN_ID": "run"}, 130),  # torchrun's way to pass on a second SIGINT
        (["SIGTERM", "SIGTERM"], {"TORCHELASTIC_RUN_ID": "run"}, 0),
    ],
)
def test_a_second_interrupt_ends_at_once(signals, environment, code):
    kills = "; ".join(f"os.kill(os.getpid(), signal.{each})" for each in signals)
    program = f"import os, signal; from megatron_yuan.training.stopping import Stopping\nwith Stopping(): {kills}"
    ended = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert ended.returncode == code
    assert "SIG" in ended.stderr and "Traceback" not in ended.stderr


def test_a_forked_worker_does_not_take_the_signal_for_its_own():
    program = (
        "import os, signal; from megatron_yuan.training.stopping import Stopping\n"
        "with Stopping() as s:\n"
        "    child = os.fork()\n"
        "    os.kill(os.getpid(), signal.SIGINT); os.kill(os.getpid(), signal.SIGINT) if not child else None\n"
        "    os._exit(int(any(s.votes()))) if not child else None\n"
        "    print(os.waitpid(child, 0)[1], any(s.votes()))"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ended.stdout.split() == ["0", "True"]


def test_a_run_that_was_told_to_outlive_its_terminal_does():
    former = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Stopping():
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, former)

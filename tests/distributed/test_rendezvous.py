"""A rendezvous that nobody joins, and the other usual ends of a launcher: bounded in time, and in words."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.api import SignalException

from tests.processes import free_port
from tools.launch import main

ROOT = Path(__file__).parents[2]
C10D = "--rdzv-backend c10d --rdzv-id x --rdzv-endpoint 127.0.0.1:{port} --rdzv-conf join_timeout={seconds}"
STATIC = "--node-rank 0 --master-addr 127.0.0.1 --master-port {port} --rdzv-conf timeout={seconds}"


@pytest.mark.parametrize("rendezvous", [C10D, STATIC], ids=["c10d", "static"])
def test_a_second_node_that_never_comes_ends_the_launcher_in_time_with_the_settings_that_count(rendezvous: str) -> None:
    options = ["--nnodes", "2", "--nproc-per-node", "1", *rendezvous.format(port=free_port(), seconds=4).split()]
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "tools/launch.py", *options, "pretrain_yuan_moe.py", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1 and time.monotonic() - begun < 30
    error = done.stderr[done.stderr.index("error: ") :].splitlines()
    assert len(error) == 2 and "join_timeout" in error[0] and "--nnodes" in error[1]
    assert "Traceback" not in done.stderr, done.stderr


def test_a_process_that_fails_gives_the_launcher_its_exit_code_and_no_traceback_of_torchruns() -> None:
    options = ["--nproc-per-node", "2", "--master-port", str(free_port())]
    done = subprocess.run(
        [sys.executable, "tools/launch.py", *options, "pretrain_yuan_moe.py", "--num-layers", "0"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 2, done.stderr
    assert "num-layers is 0" in done.stderr and "ended with code 2" in done.stderr
    assert "Traceback" not in done.stderr, done.stderr


def test_a_launcher_that_a_signal_ended_says_so_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    def ended(_: object) -> None:
        raise SignalException("Process 1 got signal: 10", sigval=10)  # type: ignore[arg-type]

    assert main([], run=ended) == 128 + 10
    assert capsys.readouterr().err == "the launcher was ended by SIGUSR1, as were its processes\n"

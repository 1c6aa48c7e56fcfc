"""A signal to the launcher ends the run in good order; the same command goes on; nobody else gets into its folder."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.indexed_data import EOD, counting_documents, write_indexed
from tests.processes import free_port

ENTRY = Path(__file__).parents[2] / "pretrain_yuan_moe.py"
STEPS = 2000
SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"


@pytest.fixture
def flags(tmp_path) -> list[str]:
    prefix = write_indexed(tmp_path / "set", counting_documents(0))
    return f"""--preset tiny --num-layers 2 --seq-length 32 --data-path {prefix} --eod-id {EOD} --split 1,0,0
        --train-iters {STEPS} --lr-warmup-iters 0 --micro-batch-size 1 --global-batch-size 2 --peak-tflops 1
        --save {tmp_path / "run"}""".split()


def torchrun(*flags: str) -> list[str]:
    launcher = f"-m torch.distributed.run --nproc-per-node 2 --master-port {free_port()} --signals-to-handle {SIGNALS}"
    return [sys.executable, *launcher.split(), str(ENTRY), "--pipeline-model-parallel-size", "2", *flags]


@contextmanager
def started(command: list[str], run: Path) -> Iterator[subprocess.Popen]:
    """The running command, once it has trained three steps; killed at the end if it still runs."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        deadline = time.monotonic() + 120
        while steps(run) < 3:
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline, "no step within 120 s"
            time.sleep(0.05)
        yield process
    finally:
        process.kill()
        process.communicate()


def steps(run: Path) -> int:
    metrics = run / "metrics.jsonl"
    return metrics.read_text().count('"kind":"step"') if metrics.exists() else 0


def status(run: Path) -> dict:
    return json.loads((run / "status.json").read_text())


def test_a_signal_to_torchrun_saves_and_the_same_command_finishes_the_run(flags, tmp_path):
    run = tmp_path / "run"
    with started(torchrun(*flags, "--num-workers", "1"), run) as process:
        assert status(run)["state"] == "running"
        process.send_signal(signal.SIGUSR1)
        said, _ = process.communicate(timeout=60)
    stopped = status(run)
    assert (stopped["state"], stopped["reason"]) == ("requeue", "SIGUSR1"), said
    assert (run / "checkpoints" / "latest").read_text().strip() == f"iter_{stopped['step']:07d}"
    assert stopped["step"] == steps(run) < STEPS
    flags[flags.index(str(STEPS))] = last = str(stopped["step"] + 5)
    subprocess.run(torchrun(*flags), check=True, timeout=120, capture_output=True)
    assert (status(run)["state"], status(run)["step"], steps(run)) == ("done", int(last), int(last))


def test_a_second_run_is_kept_out_of_the_folder_and_a_kill_of_the_first_lets_it_in(flags, tmp_path):
    command = [sys.executable, str(ENTRY), *flags]
    with started(command, tmp_path / "run") as process:
        second = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert second.returncode == 2 and f"process {process.pid}" in second.stderr, second.stderr
        assert "Traceback" not in second.stderr
        process.kill()
        process.wait()
    assert status(tmp_path / "run")["state"] == "running"
    subprocess.run([*command, "--exit-duration-in-mins", "0.001"], check=True, timeout=120, capture_output=True)
    ended = status(tmp_path / "run")
    assert (ended["state"], ended["reason"]) == ("requeue", "exit-duration-in-mins")

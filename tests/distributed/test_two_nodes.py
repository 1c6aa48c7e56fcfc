"""torchrun on two machines: it trains; a pulled cable ends both sides, each naming the other; put back, it goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.indexed_data import EOD, counting_documents, write_indexed
from tests.processes import free_port
from tests.two_nodes import Node, cable, two_nodes, why_not

ENTRY = Path(__file__).parents[2] / "pretrain_yuan_moe.py"
REASON = why_not()
LIVENESS = 10

pytestmark = [pytest.mark.slow, pytest.mark.skipif(REASON is not None, reason=str(REASON))]


@contextmanager
def launched(nodes: tuple[Node, Node], flags: list[str], logs: Path) -> Iterator[list[subprocess.Popen]]:
    """torchrun on each. (With the c10d rendezvous the far one, though not its training, outlives a network that fails:
    it waits for the store without a word, torch 2.13, more than four minutes, whatever its read_timeout.)"""
    port, launchers = free_port(), []
    try:
        for rank, node in enumerate(nodes):
            torchrun = f"""-m torch.distributed.run --nnodes 2 --nproc-per-node 1 --node-rank {rank}
                --master-addr {nodes[0].address} --master-port {port}
                --local-addr {node.address} --signals-to-handle SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1""".split()
            command = node.command([sys.executable, *torchrun, str(ENTRY), *flags])
            with open(logs / f"{node.name}.txt", "w") as log:
                launchers.append(
                    subprocess.Popen(command, stdout=log, stderr=log, env=node.environment, start_new_session=True)
                )
        yield launchers
    finally:
        for launcher in launchers:
            if launcher.poll() is None:
                os.killpg(launcher.pid, signal.SIGKILL)
                launcher.wait()


def until(what: Callable[[], bool], seconds: float) -> float:
    """Seconds that it took; -1 where it took longer."""
    begun = time.monotonic()
    while time.monotonic() - begun < seconds:
        if what():
            return time.monotonic() - begun
        time.sleep(0.1)
    return -1.0


def steps(run: Path) -> list[int]:
    try:
        records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    except (FileNotFoundError, ValueError):
        return []
    return [record["step"] for record in records if record["kind"] == "step"]


def test_a_pulled_cable_ends_both_sides_and_put_back_the_run_goes_on(tmp_path: Path) -> None:
    run = tmp_path / "run"
    prefix = write_indexed(tmp_path / "set", counting_documents(0))
    flags = f"""--preset tiny --num-layers 2 --seq-length 32 --data-path {prefix} --eod-id {EOD} --split 1,0,0
        --pipeline-model-parallel-size 2 --train-iters 100000 --lr-warmup-iters 0 --micro-batch-size 1
        --global-batch-size 2 --peak-tflops 1 --save {run} --save-interval 5 --save-retain 2
        --liveness-timeout-in-secs {LIVENESS}""".split()
    with two_nodes(tmp_path) as nodes:
        with launched(nodes, flags, tmp_path) as launchers:
            logs = {node.name: tmp_path / f"{node.name}.txt" for node in nodes}
            assert until(lambda: max(steps(run), default=0) > 12, 120) >= 0, logs["node-a"].read_text()
            assert "preflight:" in logs["node-a"].read_text() and "node-b" in logs["node-a"].read_text()
            cable(nodes[0], "down")
            took = until(lambda: all(launcher.poll() is not None for launcher in launchers), 60)
            told = {name: log.read_text() for name, log in logs.items()}
            assert took >= 0, told
            print(f"both ends stopped after {took:.1f} s; liveness timeout {LIVENESS} s")
            assert "rank 1 (host node-b" in told["node-a"] and "rank 0 (host node-a" in told["node-b"]
        reached = max(steps(run))
        cable(nodes[0], "up")
        with launched(nodes, flags, tmp_path) as launchers:
            assert until(lambda: max(steps(run)) > reached + 3, 120) >= 0, logs["node-a"].read_text()
            assert "everything from" in logs["node-a"].read_text()
            for launcher in launchers:
                launcher.send_signal(signal.SIGTERM)
            assert until(lambda: all(launcher.poll() is not None for launcher in launchers), 60) >= 0
        assert json.loads((run / "status.json").read_text())["state"] == "requeue"

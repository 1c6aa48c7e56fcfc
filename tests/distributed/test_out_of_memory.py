"""Memory that runs out on one of two ranks: both end at once, what would fit is said, and nobody starts it again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.indexed_data import EOD, counting_documents, write_indexed
from tests.processes import free_port

ROOT = Path(__file__).parents[2]
LIMITED = """
import os, resource, runpy, sys
import megatron_yuan.training.loop as loop
fit, limited, room = loop.fit, sys.argv.pop(1), int(sys.argv.pop(1))
def fit_with_little(run):
    if os.environ["RANK"] == limited:
        limit = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize() + room
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    fit(run)
loop.fit = fit_with_little
sys.argv.pop(0)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("limited", [0, 1])
def test_memory_that_runs_out_on_one_rank_ends_both_with_what_would_fit_and_is_not_requeued(
    limited: int, tmp_path: Path
) -> None:
    prefix = write_indexed(tmp_path / "set", counting_documents(0))
    (tmp_path / "limited.py").write_text(LIMITED)
    flags = f"""--preset tiny --num-layers 4 --seq-length 64 --data-path {prefix} --eod-id {EOD} --split 1,0,0
        --train-iters 2 --lr-warmup-iters 0 --micro-batch-size 256 --global-batch-size 512 --peak-tflops 1
        --pipeline-model-parallel-size 2 --save {tmp_path / "run"}"""
    launcher = ["tools/launch.py", "--nproc-per-node", "2", "--master-port", str(free_port())]
    program = [str(tmp_path / "limited.py"), str(limited), str(300 * 2**20), "pretrain_yuan_moe.py"]
    done = subprocess.run(
        [sys.executable, *launcher, *program, *flags.split()],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=90,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert f"rank {limited} (stage {limited} of 2, cpu) is out of memory at step 1" in done.stderr, done.stderr
    assert "What would fit on these processes" in done.stderr and "--micro-batch-size" in done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["state"] == "failed" and "OutOfMemory" in status["reason"]

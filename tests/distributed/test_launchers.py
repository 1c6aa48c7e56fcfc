"""The entry under the launchers that people use, as commands."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.indexed_data import EOD, counting_documents, write_indexed
from tests.processes import free_port

ENTRY = Path(__file__).parents[2] / "pretrain_yuan_moe.py"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "{port}"]
DEEPSPEED = ["deepspeed", "--num_gpus", "2", "--no_local_rank", "--master_port", "{port}"]


@pytest.mark.parametrize("launcher", [TORCHRUN, DEEPSPEED], ids=["torchrun", "deepspeed"])
def test_a_launcher_trains_over_two_stages(launcher: list[str], tmp_path: Path) -> None:
    beside_python = str(Path(sys.executable).parent)
    environment = os.environ | {"PATH": beside_python + os.pathsep + os.environ["PATH"]}
    if shutil.which(launcher[0], path=environment["PATH"]) is None:
        pytest.skip(f"needs {launcher[0]}, of an extra of that name")
    prefix = write_indexed(tmp_path / "set", counting_documents(0))
    flags = f"""--preset tiny --num-layers 2 --seq-length 32 --data-path {prefix} --eod-id {EOD} --split 1,0,0
        --pipeline-model-parallel-size 2 --train-iters 2 --lr-warmup-iters 0 --micro-batch-size 1
        --global-batch-size 2 --peak-tflops 1 --save {tmp_path / "run"}"""
    command = [token.format(port=free_port()) for token in launcher] + [str(ENTRY), *flags.split()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    steps = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in steps if "grad_norm" in line] == [1, 2]

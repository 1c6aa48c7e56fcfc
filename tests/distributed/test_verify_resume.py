"""tools/verify_resume.py proves a resume, and says where one is none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.indexed_data import EOD, counting_documents, write_indexed

TOOL = Path(__file__).parents[2] / "tools" / "verify_resume.py"


@pytest.fixture(scope="module")
def flags(tmp_path_factory) -> list[str]:
    prefix = write_indexed(tmp_path_factory.mktemp("data") / "set", counting_documents(0))
    return f"""--preset tiny --num-layers 2 --seq-length 32 --data-path {prefix} --eod-id {EOD} --split 1,0,0
        --micro-batch-size 1 --global-batch-size 2 --lr-warmup-iters 0 --peak-tflops 1 --hidden-dropout 0.1
        --attention-dropout 0.1 --bf16 --moe-router noisy-top-k --num-workers 1""".split()


def verify(flags: list[str], scratch: Path, *own: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TOOL), "--stop-at", "2", "--steps", "4", "--scratch", str(scratch), *own]
    return subprocess.run(
        [*command, "--", *flags], capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )


def test_a_resume_is_proved_to_the_bit_and_nothing_is_left(flags, tmp_path):
    done = verify(flags, tmp_path)
    assert done.returncode == 0 and "IDENTICAL: 2 steps" in done.stdout, done.stdout + done.stderr
    assert not list(tmp_path.iterdir())


def test_moments_that_are_not_restored_are_told_by_step_and_tensor(flags, tmp_path):
    done = verify(flags, tmp_path, "--resume-flags=--no-load-optim")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "after step 3 the first tensor that differs is embedding.weight" in done.stdout


def test_a_resume_on_another_layout_sees_the_same_samples(flags, tmp_path):
    there = ["--resume-nproc-per-node", "2", "--resume-flags", "--pipeline-model-parallel-size 2"]
    done = verify(flags, tmp_path, *there)
    assert done.returncode == 0 and "SAME RUN on another layout" in done.stdout, done.stdout + done.stderr


def test_a_mistake_is_told_before_anything_runs(flags, tmp_path):
    done = verify([*flags, "--save", "x"], tmp_path)
    assert done.returncode == 2 and "save is set by this tool" in done.stderr and not list(tmp_path.iterdir())

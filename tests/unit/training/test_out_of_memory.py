"""Memory that runs out, in a real run whose process may not have more."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from megatron_yuan.config.fields import with_values
from megatron_yuan.config.presets import preset
from megatron_yuan.planning.memory import plan_memory
from megatron_yuan.planning.remedies import remedies
from megatron_yuan.training.out_of_memory import explaining_memory
from tests.indexed_data import EOD, counting_documents, write_indexed

ENTRY = Path(__file__).parents[3] / "pretrain_yuan_moe.py"
LIMITED = """
import resource, runpy, sys
import torch._dynamo, megatron_yuan.data.datasets, megatron_yuan.training.loop, megatron_yuan.training.start
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
sys.argv.pop(0)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_who_runs_out_of_memory_is_told_what_is_held_and_which_changes_would_fit(tmp_path: Path) -> None:
    prefix = write_indexed(tmp_path / "set", counting_documents(0))
    flags = f"""--preset tiny --num-layers 4 --seq-length 64 --data-path {prefix} --eod-id {EOD} --split 1,0,0
        --train-iters 2 --lr-warmup-iters 0 --micro-batch-size 256 --global-batch-size 256 --peak-tflops 1
        --liveness-timeout-in-secs 0 --save {tmp_path / "run"}"""
    command = [sys.executable, "-c", LIMITED, str(1000 * 2**20), str(ENTRY), *flags.split()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 2, done.stdout + done.stderr
    error = done.stderr[done.stderr.index("error: ") :]
    assert len(error.strip().splitlines()) == 2, error
    for word in ("rank 0 (stage 0 of 1, cpu)", "step 1", "asked for", "weights", "masters and moments", "the plan"):
        assert word in error, (word, error)
    # Which changes come first hangs on what else the process holds, as its libraries.
    assert error.splitlines()[1].startswith("What would fit on these processes, the cheapest first: --"), error
    assert "OutOfMemory" in (tmp_path / "run" / "status.json").read_text()


@pytest.mark.slow
def test_both_changes_that_are_named_train_under_the_same_limit(tmp_path: Path) -> None:
    prefix = write_indexed(tmp_path / "set", counting_documents(0))
    flags = f"""--preset tiny --num-layers 4 --seq-length 64 --data-path {prefix} --eod-id {EOD} --split 1,0,0
        --train-iters 2 --lr-warmup-iters 0 --micro-batch-size 128 --global-batch-size 128 --peak-tflops 1"""
    command = [sys.executable, "-c", LIMITED, str(1000 * 2**20), str(ENTRY), *flags.split()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    error = done.stderr[done.stderr.index("error: ") :]
    assert done.returncode == 2 and "before the model" in error, error
    named = re.findall(r"(--[^(]+) \([\d.]+ GB, a step", error)
    assert len(named) == 2, error
    for changes in named:
        changed = subprocess.run([*command, *changes.split()], capture_output=True, text=True, timeout=240)
        assert changed.returncode == 0, (changes, changed.stderr)


def test_what_is_named_fits_by_the_plan_and_costs_more_the_later_it_stands() -> None:
    values = {"pipeline_model_parallel_size": 8, "recompute_granularity": "none", "recompute_num_layers": None}
    config = with_values(preset("yuan2-m32"), values)
    budget = 0.95 * max(stage.total for stage in plan_memory(config, 2))
    found = remedies(config, 2, budget)
    assert found and all(each.bytes <= budget and each.gpus == 16 for each in found)
    assert [each.slower for each in found] == sorted(each.slower for each in found)
    assert not remedies(config, 2, 1e9)


def test_what_is_named_for_an_interleaved_schedule_can_be_trained() -> None:
    values = {"pipeline_model_parallel_size": 2, "virtual_pipeline_model_parallel_size": 2, "global_batch_size": 36}
    config = with_values(preset("yuan2-m32"), values | {"micro_batch_size": 6, "pipeline_model_parallel_layout": None})
    needs = max(stage.total for stage in plan_memory(config))
    found = remedies(config, 1, 0.99 * needs)  # micro-batch 4 would fit, but makes 9 microbatches for 2 stages
    assert any(each.flags == "--micro-batch-size 3" for each in found), found
    for each in found:
        size = re.search(r"--micro-batch-size (\d+)", each.flags)
        assert 36 // int(size[1] if size else 6) % 2 == 0, each


def test_other_errors_stay_what_they_are() -> None:
    here = SimpleNamespace(device=torch.device("cpu"))
    with pytest.raises(RuntimeError, match="mat1 and mat2"), explaining_memory(None, here):  # type: ignore[arg-type]
        torch.ones(2, 3) @ torch.ones(2, 3)

from __future__ import annotations

import subprocess
import sys

import pytest

from megatron_yuan.config.fields import with_values
from megatron_yuan.config.presets import PRESETS
from megatron_yuan.config.schema import Config
from megatron_yuan.planning import candidates
from megatron_yuan.planning.costs import Costs
from megatron_yuan.planning.dry_run import dry_run_report
from megatron_yuan.planning.machine import read_machine
from megatron_yuan.planning.memory import plan_memory
from megatron_yuan.planning.remedies import ROUNDS
from megatron_yuan.planning.step_time import StepTime, step_time

M32 = PRESETS["yuan2-m32"]


def test_the_m32_report_has_the_published_figures() -> None:
    report = dry_run_report(M32, "yuan2-m32")
    assert "39,942,842,368 total, 3,704,055,808 active" in report
    assert "7.4 GFLOP per token forward" in report
    assert "2,000,683,008,000 tokens" in report
    assert "89.2" in report and "94.2" in report  # state of a middle and of an outer stage
    assert "Unlike preset yuan2-m32: nothing" in report


def test_the_m32_report_says_which_gpus_it_fits() -> None:
    report = dry_run_report(M32, "yuan2-m32")
    assert "8 x 80 GB: does not fit" in report
    assert "state alone" in report
    assert "--pipeline-model-parallel-size 12" in report
    assert "8 x 141 GB: fits" in report


def test_the_report_shows_what_was_changed_and_where_layers_live() -> None:
    config = with_values(
        PRESETS["tiny"], {"pipeline_model_parallel_size": 2, "pipeline_model_parallel_layout": "1,3", "lr": 0.5}
    )
    report = dry_run_report(config, "tiny", world_size=4)
    assert f"--lr 0.5 (preset: {PRESETS['tiny'].optimizer.lr})" in report
    assert "stage 1: 3 layers (1-3), final norm and head" in report
    assert "pipeline stages 2 x replicas 2" in report


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize(
    "values", [{}, {"bf16": False}, {"recompute_granularity": "none", "recompute_num_layers": None}]
)
def test_every_preset_can_be_reported(name: str, values: dict[str, object]) -> None:
    report = dry_run_report(with_values(PRESETS[name], values), name)
    assert max(map(len, report.splitlines())) <= 160


def test_a_virtual_layout_names_the_layers_of_each_chunk() -> None:
    config = with_values(
        PRESETS["tiny"], {"pipeline_model_parallel_size": 2, "virtual_pipeline_model_parallel_size": 2}
    )
    assert "stage 0: 2 layers (0, 2), embedding" in dry_run_report(config, "tiny")


def test_the_report_needs_no_torch() -> None:
    program = (
        "import sys\nfrom megatron_yuan.config.presets import PRESETS\n"
        "from megatron_yuan.planning.dry_run import dry_run_report\n"
        "dry_run_report(PRESETS['yuan2-m32'])\nassert not {'torch', 'numpy', 'megatron'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_what_would_make_it_fit_is_weighed_by_a_few_microbatches_of_each_layout(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    passes = []

    def counted(config: Config, replicas: int, costs: Costs, microbatches: int | None = None) -> StepTime:
        passes.append((microbatches or 768) * config.parallel.pipeline_model_parallel_size)
        return step_time(config, replicas, costs, microbatches)

    monkeypatch.setattr(candidates, "step_time", counted)
    dry_run_report(M32, "yuan2-m32")
    assert passes and sum(passes) < 2000  # of a microbatch on a stage; a whole step of M32 has 6144
    machine = read_machine("h100-80gb")
    layout = candidates.Layout(M32, 1, plan_memory(M32, 1))
    short, whole = (candidates.timed(layout, machine, whole, rounds=ROUNDS).seconds for whole in (False, True))
    assert short == pytest.approx(whole, rel=0.005)

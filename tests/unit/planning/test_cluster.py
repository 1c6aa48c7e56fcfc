from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_yuan.config.fields import with_values
from megatron_yuan.config.load import parse
from megatron_yuan.config.presets import PRESETS
from megatron_yuan.config.validate import validate_world
from megatron_yuan.errors import ConfigError
from megatron_yuan.planning.candidates import EQUAL, Layout, first_that_fits, layouts, timed
from megatron_yuan.planning.cluster import plan_cluster, write_config
from megatron_yuan.planning.cluster_report import cluster_report
from megatron_yuan.planning.costs import Costs, costs_on
from megatron_yuan.planning.machine import Figure, read_machine
from megatron_yuan.planning.memory import plan_memory

M32 = PRESETS["yuan2-m32"]
H100, H200 = read_machine("h100-80gb"), read_machine("h200-141gb")
TOOL = Path(__file__).parents[3] / "tools" / "plan_cluster.py"


def test_the_published_layout_needs_its_89_to_94_gb_a_stage() -> None:
    state = [stage.state / 1e9 for stage in plan_memory(M32)]
    assert (round(min(state), 1), round(max(state), 1)) == (89.2, 94.2)


def test_m32_does_not_fit_eight_gpus_of_80_gb_and_the_report_says_the_least_that_would() -> None:
    plan = plan_cluster(M32, 8, H100)
    assert not plan.best and plan.fitting == 0
    report = cluster_report(plan)
    assert "8 stages: " in report and "masters and moments alone are 94.2" in report
    assert "The least that would: 12 of them, or 8 GPUs of " in report


def test_gpus_of_the_memory_that_would_do_do_indeed() -> None:
    model = with_values(M32, {"num_layers": 3})  # needs 105.09 GB
    said = re.search(r"or 1 GPU of (\d+) GB each", cluster_report(plan_cluster(model, 1, H100)))
    assert said is not None
    assert plan_cluster(model, 1, replace(H100, memory_gb=Figure(float(said[1]), "said"))).best
    assert not plan_cluster(model, 1, replace(H100, memory_gb=Figure(float(said[1]) - 1, "said"))).best


def test_twelve_gpus_of_80_gb_are_indeed_the_least() -> None:
    def fits(gpus: int) -> bool:
        return any(first_that_fits(group, H100) is not None for group in layouts(M32, gpus, H100))

    assert not fits(11)
    assert fits(12)


@pytest.mark.parametrize("gpus", [8, 64, 1024])
def test_the_best_layout_can_be_trained_as_written(tmp_path: Path, gpus: int) -> None:
    plan = plan_cluster(M32, gpus, H200, 2e12)
    best = plan.best[0].layout
    write_config(plan, tmp_path / "plan.yaml")
    config = validate_world(parse(["--config", str(tmp_path / "plan.yaml")]).config, best.gpus)
    assert config == best.config
    assert config.training.train_iters == config.optimizer.lr_decay_iters == 317_892
    assert max(stage.total for stage in plan_memory(config, best.replicas)) <= H200.usable_bytes
    assert all(plan.best[0].seconds <= 1.005 * each.seconds for each in plan.best)


def test_more_gpus_than_the_batch_has_samples_are_left_unused() -> None:
    plan = plan_cluster(with_values(M32, {"num_layers": 2, "global_batch_size": 4}), 1_000_000, H200)
    assert plan.best[0].layout.replicas <= 4
    assert "GPUs are not used: more replicas of these stages do not divide the batch" in cluster_report(plan)


def test_gpus_that_are_too_few_for_another_replica_are_said_to_be() -> None:
    plan = plan_cluster(M32, 14, H100)
    assert plan.best[0].layout.stages == 13
    assert "1 of 14 GPUs are not used: too few for another replica of these stages" in cluster_report(plan)


def test_gpus_that_a_slow_network_makes_useless_are_said_to_be() -> None:
    slow = replace(H200, network_gb_per_s=Figure(0.1, "slow"), gpus_per_node=Figure(1, "slow"))
    plan = plan_cluster(with_values(M32, {"num_layers": 1, "global_batch_size": 4}), 4, slow)
    assert plan.best[0].layout.gpus == 1
    assert "3 of 4 GPUs are not used: more replicas of these stages would be no faster" in cluster_report(plan)


def test_no_layout_that_was_passed_over_is_faster_and_none_as_fast_needs_fewer_gpus() -> None:
    small = with_values(M32, {"num_layers": 8, "global_batch_size": 96})
    groups = layouts(small, 8, H200)
    tried = [timed(each, H200) for g in groups if (each := first_that_fits(g, H200)) is not None]
    enough = min(each.seconds for each in tried) * (1 + EQUAL)
    best = plan_cluster(small, 8, H200).best[0]
    assert best.seconds <= enough * 1.001  # the best is simulated whole
    assert best.layout.gpus == min(each.layout.gpus for each in tried if each.seconds <= enough)


@pytest.mark.parametrize(("stages", "virtual", "recompute"), [(8, 1, "none"), (12, 1, "none"), (4, 3, "full")])
def test_a_shortened_simulation_gives_the_figures_of_the_whole(stages: int, virtual: int, recompute: str) -> None:
    values = {"pipeline_model_parallel_size": stages, "virtual_pipeline_model_parallel_size": virtual}
    config = with_values(M32, values | {"recompute_granularity": recompute, "global_batch_size": 240})
    layout = Layout(config, 1, plan_memory(config))
    short, whole = timed(layout, H200), timed(layout, H200, whole=True)
    assert short.seconds == pytest.approx(whole.seconds, rel=1e-3)
    assert short.step.bubble == pytest.approx(whole.step.bubble, abs=1e-3)
    assert short.step.ideal_bubble == whole.step.ideal_bubble
    assert short.step.sent_bytes == whole.step.sent_bytes


def test_stages_and_replicas_on_several_machines_meet_over_the_network() -> None:
    def costs(stages: int, replicas: int) -> Costs:
        return costs_on(H200, with_values(M32, {"pipeline_model_parallel_size": stages}), replicas)

    nvlink, card = (H200.link_bytes_per_second(within) for within in (True, False))
    assert (costs(4, 2).message, costs(4, 2).reduce) == (1 / nvlink, 1 / nvlink)
    # Four replicas: the second stage's GPUs are on the first machine, the third's on the second.
    assert (costs(6, 4).message, costs(6, 4).reduce) == (1 / card, 1 / nvlink)
    # Six: of the second stage's GPUs two are on the first machine, four on the second. Twelve: four at the least.
    assert costs(8, 6).reduce == 1 / (2 * card)
    assert costs(8, 12).reduce == 1 / (4 * card)
    assert costs(8, 16).reduce == 1 / min(8 * card, nvlink)


def test_a_plan_of_a_run_in_float32_warns_that_its_times_are_of_bfloat16() -> None:
    small = with_values(M32, {"num_layers": 2, "global_batch_size": 4})
    assert "bf16 is off" in cluster_report(plan_cluster(with_values(small, {"bf16": False}), 1, H200))
    assert "bf16 is off" not in cluster_report(plan_cluster(small, 1, H200))


def test_another_file_is_not_overwritten_but_an_earlier_plan_is(tmp_path: Path) -> None:
    plan = plan_cluster(with_values(M32, {"num_layers": 4}), 4, H200)
    write_config(plan, tmp_path / "plan.yaml")
    write_config(plan, tmp_path / "plan.yaml")
    (tmp_path / "mine.yaml").write_text("lr: 1\n")
    with pytest.raises(ConfigError, match="no plan of this tool"):
        write_config(plan, tmp_path / "mine.yaml")
    with pytest.raises(ConfigError, match="cannot be written"):
        write_config(plan, tmp_path)


def test_a_model_whose_layer_alone_is_too_large_is_told_so() -> None:
    huge = with_values(M32, {"num_layers": 2, "num_experts": 1024})
    assert "nor would one layer a GPU" in cluster_report(plan_cluster(huge, 2, H100))


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(TOOL), *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--gpus 8", "gpu is not given"),
        ("--gpu h100-80gb", "gpus is not given"),
        ("--gpus 0 --gpu h100-80gb", "gpus is '0'"),
        ("--gpus 8 --gpu h100-80gb --device cpu", "device is cpu, but the plan is for GPUs (h100-80gb)"),
        ("--gpus eight --gpu h100-80gb", "gpus is 'eight'"),
        ("--gpus 8 --gpu h300", "gpu 'h300' is not known"),
        ("--gpus 8 --gpu h100-80gb --tokens many", "tokens is 'many'"),
        ("--gpus 8 --gpu h100-80gb --tokens -5", "tokens is -5"),
        ("--gpus 8 --gpu h100-80gb --tokens nan", "tokens is nan"),
        ("--gpus 8 --gpu h100-80gb --tokens 2e10", "lower --lr-warmup-iters"),  # the plan would not train as written
        ("--gpus 8 --gpu h100-80gb --preset yuan2-m32 --pipeline-model-parallel-size 32", "is not divisible by 32"),
        ("--gpus 8 --gpu", "--gpu needs a value"),
    ],
)
def test_bad_input_is_refused_in_a_sentence_or_two(arguments: str, said: str) -> None:
    done = run("--preset", "yuan2-m32", *arguments.split())
    assert done.returncode != 0
    assert said in done.stderr and "Traceback" not in done.stderr


def test_a_presets_own_layout_does_not_stand_in_the_way_of_another_size(tmp_path: Path) -> None:
    for size in ("--num-layers 1", "--num-layers 5", "--global-batch-size 7"):
        plan = f"--preset yuan2-m32 {size} --gpus 16 --gpu h200-141gb --output {tmp_path}/plan.yaml"
        done = run(*plan.split())
        assert done.returncode == 0 or "Nothing fits" in done.stdout, done.stderr


def test_the_tool_writes_a_plan_and_needs_no_torch(tmp_path: Path) -> None:
    done = run(*f"--preset tiny --gpus 4 --gpu h100-80gb --output {tmp_path}/plan.yaml".split())
    assert done.returncode == 0, done.stderr
    assert "tokens/s" in done.stdout and (tmp_path / "plan.yaml").exists()
    loaded = (
        f"import sys; sys.argv = ['x', '--help']\nimport runpy\nrunpy.run_path({str(TOOL)!r}, run_name='__main__')\n"
    )
    check = subprocess.run(
        [sys.executable, "-c", loaded + "assert not {'torch', 'megatron'} & set(sys.modules)"], check=False
    )
    assert check.returncode == 0


def test_of_flags_given_twice_the_last_counts_and_one_of_a_thing_is_no_plural(tmp_path: Path) -> None:
    output = tmp_path / "plan.yaml"
    done = run(
        "--preset=tiny", "--gpus=3", "--gpu=h100-80gb", "--gpus", "1", "--tokens", "1e9", "--output", str(output)
    )
    assert done.returncode == 0, done.stderr
    assert "The fastest: 1 stage x 1 replica," in done.stdout and done.stdout.endswith("with 1 process\n")
    assert "1 stage x 1 replica on 1 x h100-80gb" in output.read_text()

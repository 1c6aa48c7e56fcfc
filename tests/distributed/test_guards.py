"""A bad step is skipped on all ranks alike, and too many end with a diagnosis; replicas that differ are found."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from megatron_yuan.config.presets import preset
from megatron_yuan.config.schema import Config
from megatron_yuan.config.validate import validate_world
from megatron_yuan.errors import ReplicaError, TrainingError
from tests.distributed.training import train
from tests.indexed_data import EOD, counting_documents, write_indexed
from tests.processes import run_processes


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Config:
    prefix = write_indexed(tmp_path_factory.mktemp("data") / "set", counting_documents(0))
    tiny = preset("tiny")
    return replace(
        tiny,
        model=replace(tiny.model, hidden_dropout=0.1),
        data=replace(tiny.data, data_path=(prefix,), split="1,0,0", seq_length=32, eod_id=EOD),
        training=replace(tiny.training, train_iters=6, micro_batch_size=1, global_batch_size=4),
        logging=replace(tiny.logging, peak_tflops=1.0),
    )


def on(config: Config, stages: int, save: Path | None = None, **guard: object) -> Config:
    return replace(
        config,
        parallel=replace(config.parallel, pipeline_model_parallel_size=stages),
        guard=replace(config.guard, **guard),
        checkpoint=replace(config.checkpoint, save=None if save is None else str(save)),
    )


def with_fault(config: Config, step_of: dict[int, int], where: str) -> dict[str, object]:
    """Train; before the optimizer of a step in `step_of` (step -> rank) spoil that rank's gradient, or its weight."""
    from megatron_yuan.data.datasets import open_sources
    from megatron_yuan.parallel import topology as processes
    from megatron_yuan.training.loop import fit
    from megatron_yuan.training.optimizer import MixedPrecisionAdamW
    from megatron_yuan.training.start import start_run

    config = validate_world(config, processes.world_size())
    topology = processes.start(config)
    try:
        run = start_run(config, topology, open_sources(config.data, config.model.vocab_size))
        norm = MixedPrecisionAdamW.gradient_norm

        def spoiled(optimizer, *args):
            if step_of.get(run.step + 1) == topology.rank:
                parameter = list(optimizer.parameters.values())[-1]
                if where == "gradient":
                    parameter.main_grad.view(-1)[0] = math.nan
                else:
                    parameter.data.view(torch.uint8).view(-1)[0] ^= 1
            return norm(optimizer, *args)

        MixedPrecisionAdamW.gradient_norm = spoiled  # type: ignore[method-assign]
        error = ""
        try:
            fit(run)
        except (TrainingError, ReplicaError) as caught:
            error = f"{type(caught).__name__}: {caught}"
        finite = all(torch.isfinite(p).all() for p in run.model.parameters.values())
        weights = {n: p.detach().view(torch.uint8).numpy().tobytes() for n, p in run.model.parameters.items()}
        return {"weights": weights, "finite": bool(finite), "skipped": run.guard.skipped, "error": error}
    finally:
        processes.stop()


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("stages", [1, 2])
def test_a_gradient_spoiled_on_one_rank_is_skipped_on_all(config, stages, tmp_path):
    """On 1x2 only one replica's norm is not finite; on 2x1 only one stage's gradient."""
    results = run_processes(with_fault, 2, on(config, stages, tmp_path / "run"), {3: 1}, "gradient")
    assert [each["skipped"] for each in results] == [1, 1] and all(not each["error"] for each in results)
    assert all(each["finite"] for each in results)
    assert stages == 2 or results[0]["weights"] == results[1]["weights"]
    (bad,) = [line for line in metrics(tmp_path / "run") if "skipped" in line]
    assert bad["step"] == 3 and "gradient norm is nan" in bad["skipped"]


def test_a_skipped_step_leaves_no_trace_but_its_data(config, tmp_path):
    """Skipped by the guard or left out by its number: the same steps, samples and weights follow."""
    (faulty,) = run_processes(with_fault, 1, on(config, 1), {3: 0}, "gradient")
    (left_out,) = run_processes(with_fault, 1, on(config, 1, iterations_to_skip=("3",)), {}, "gradient")
    assert faulty["weights"] == left_out["weights"]


def test_too_many_in_a_row_stop_the_run_with_what_was_found(config, tmp_path):
    run = tmp_path / "run"
    results = run_processes(with_fault, 2, on(config, 2, run, guard_max_skips=2), {3: 1, 4: 1}, "gradient")
    error = str(results[0]["error"])
    assert error == results[1]["error"]
    assert error.startswith("TrainingError: step 4: gradient norm is nan; 2 steps in a row") and "rank 1" in error
    found = json.loads((run / "diagnosis-0000004.json").read_text())
    assert found["samples"] == {"set": [12, 13, 14, 15]} and found["first_not_finite"] is None
    assert all(ranks == [1] for ranks in found["bad_gradients"].values())
    assert json.loads((run / "status.json").read_text())["state"] == "failed"


def spoil_expert(config: Config) -> str:
    """A weight that is not finite: the diagnosis names the layer whose output is the first to be so."""
    from megatron_yuan.data.datasets import open_sources
    from megatron_yuan.parallel import topology as processes
    from megatron_yuan.training.loop import fit
    from megatron_yuan.training.start import start_run

    config = validate_world(config, processes.world_size())
    topology = processes.start(config)
    try:
        run = start_run(config, topology, open_sources(config.data, config.model.vocab_size))
        for name, parameter in run.model.parameters.items():
            if name == "layers.2.attention.value.weight":
                parameter.data[0, 0] = math.nan
        with pytest.raises(TrainingError) as caught:
            fit(run)
        return str(caught.value)
    finally:
        processes.stop()


def test_the_first_layer_that_is_not_finite_is_named_from_another_stage(config):
    told = run_processes(spoil_expert, 2, on(config, 2, guard_max_skips=1))
    assert "the first output that is not finite is that of layer 2, attention on rank 1, samples" in told[0]
    assert told[0] == told[1]


def test_a_weight_that_differs_on_one_of_three_replicas_stops_the_run_by_name(config, tmp_path):
    guarded = on(config, 1, tmp_path / "run", check_weight_hash_across_dp_replicas_interval=1)
    guarded = replace(guarded, training=replace(guarded.training, global_batch_size=3))
    results = run_processes(with_fault, 3, guarded, {3: 1}, "weight")
    for each in results:
        assert "ReplicaError: replicas differ" in str(each["error"]) and "rank 1 is unlike" in str(each["error"])
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "requeue"


def seen_samples(config: Config) -> list[list[int]]:
    """Sample numbers of each step, by the batches themselves."""
    from megatron_yuan.training import step as steps

    seen: list[list[int]] = []
    key = steps.key

    def noted(seed: int, step: int, sample: int):
        while len(seen) < step:
            seen.append([])
        seen[step - 1].append(sample)
        return key(seed, step, sample)

    steps.key = noted
    train(config)
    return [sorted(set(each)) for each in seen]


def test_skipped_samples_are_never_seen_whatever_the_number_of_replicas(config):
    skipping = on(config, 1, skip_samples=("2-4", "9"))
    wanted = [n for n in range(40) if n not in {2, 3, 4, 9}][:24]
    wanted_steps = [wanted[i : i + 4] for i in range(0, 24, 4)]
    assert run_processes(seen_samples, 1, skipping)[0] == wanted_steps
    both = run_processes(seen_samples, 2, skipping)
    assert [sorted(a + b) for a, b in zip(*both, strict=True)] == wanted_steps

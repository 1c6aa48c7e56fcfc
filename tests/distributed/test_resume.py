"""A run that stops and goes on is the run that never stopped."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch

import megatron_yuan
from megatron_yuan.checkpoint.load import open_checkpoint
from megatron_yuan.config.presets import preset
from megatron_yuan.config.schema import Config
from tests.distributed.training import train
from tests.indexed_data import EOD, counting_documents, write_indexed
from tests.processes import run_processes

STEPS, STOP = 8, 4


def at(config: Config, stages: int, virtual: int, save: str, stop: int | None = None, **checkpoint) -> Config:
    return replace(
        config,
        parallel=replace(
            config.parallel, pipeline_model_parallel_size=stages, virtual_pipeline_model_parallel_size=virtual
        ),
        training=replace(config.training, exit_interval=stop),
        checkpoint=replace(config.checkpoint, save=save, **checkpoint),
    )


def digest(run) -> dict[str, str]:
    import hashlib

    tensors = {name: parameter.detach() for name, parameter in run.model.parameters.items()}
    tensors |= {
        f"{name}/{slot}": tensor
        for name, slots in run.model.optimizer.state().items()
        for slot, tensor in slots.items()
    }
    return {n: hashlib.sha256(t.contiguous().view(torch.uint8).numpy()).hexdigest() for n, t in tensors.items()}


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Config:
    """`tiny` in bf16 with dropout, so that everything random and everything rounded must be right after a resume."""
    prefix = write_indexed(tmp_path_factory.mktemp("data") / "set", counting_documents(0))
    tiny = preset("tiny")
    return replace(
        tiny,
        model=replace(tiny.model, attention_dropout=0.1, hidden_dropout=0.1),
        data=replace(tiny.data, data_path=(prefix,), split="1,0,0", seq_length=32, eod_id=EOD),
        optimizer=replace(tiny.optimizer, bf16=True, lr_warmup_iters=2),
        training=replace(tiny.training, train_iters=STEPS, micro_batch_size=1, global_batch_size=4),
        logging=replace(tiny.logging, peak_tflops=1.0),
    )


@pytest.fixture(scope="module")
def halfway(config, tmp_path_factory) -> str:
    """A run folder that stopped at step STOP of STEPS, on 2 stages."""
    folder = str(tmp_path_factory.mktemp("half") / "run")
    run_processes(train, 2, at(config, 2, 1, folder, stop=STOP))
    return folder


def test_resumed_on_the_same_layout_every_loss_and_weight_is_equal_to_the_bit(config, halfway, tmp_path):
    straight = run_processes(train, 2, at(config, 2, 1, str(tmp_path / "straight")), digest)
    again = shutil.copytree(halfway, tmp_path / "again")
    resumed = run_processes(train, 2, at(config, 2, 1, str(again)), digest)
    for rank in (0, 1):
        assert resumed[rank][:-1] == straight[rank][STOP:-1]
        assert resumed[rank][-1] == straight[rank][-1]


def test_expert_biases_move_are_saved_and_resume_to_the_bit_with_noise_in_the_router(config, tmp_path):
    """The bias is float32 in a bfloat16 model; the noise of a noisy top-k router comes from no stream."""
    model = replace(config.model, moe_router="noisy-top-k", moe_router_enable_expert_bias=True, moe_load_loss_coeff=0.0)
    config = replace(config, model=model)
    straight = run_processes(train, 2, at(config, 2, 1, str(tmp_path / "straight")), digest)
    run_processes(train, 2, at(config, 2, 1, str(tmp_path / "again"), stop=STOP))
    resumed = run_processes(train, 2, at(config, 2, 1, str(tmp_path / "again")), digest)
    for rank in (0, 1):
        assert resumed[rank] == [*straight[rank][STOP:-1], straight[rank][-1]]
    weights = open_checkpoint(tmp_path / "again").read_weights(["layers.0.moe.router.expert_bias"])
    (bias_E,) = weights.values()
    assert bias_E.dtype == torch.float32 and bias_E.any()
    assert torch.equal(megatron_yuan.load(tmp_path / "again").state_dict()["layers.0.moe.router.expert_bias"], bias_E)


@pytest.mark.parametrize(("stages", "replicas", "virtual"), [(1, 1, 1), (4, 1, 1), (1, 2, 1), (2, 1, 2)])
def test_resumed_on_another_layout_the_run_goes_on(config, halfway, tmp_path, stages, replicas, virtual):
    reference = run_processes(train, 2, at(config, 2, 1, str(shutil.copytree(halfway, tmp_path / "same"))))[0]
    other = shutil.copytree(halfway, tmp_path / "other")
    resumed = run_processes(train, stages * replicas, at(config, stages, virtual, str(other)))[0]
    assert resumed[0]["loss"] == pytest.approx(reference[0]["loss"], rel=1e-6)
    assert resumed[-1]["loss"] == pytest.approx(reference[-1]["loss"], rel=1e-2)  # bf16 goes its own way in time


def test_finetuning_takes_the_weights_and_starts_anew(config, halfway, tmp_path):
    finetuning = at(config, 1, 1, str(tmp_path / "run"), load=halfway, finetune=True)
    steps = run_processes(train, 1, finetuning)[0]
    assert len(steps) == STEPS
    fresh = run_processes(train, 1, at(config, 1, 1, str(tmp_path / "fresh"), stop=1))[0]
    assert steps[0]["loss"] < fresh[0]["loss"]


def test_other_data_under_the_same_name_are_not_gone_on_with(config: Config, tmp_path):
    prefix = write_indexed(tmp_path / "set", counting_documents(0))
    mine = replace(config, data=replace(config.data, data_path=(prefix,)))
    run_processes(train, 1, at(mine, 1, 1, str(tmp_path / "run"), STOP))
    write_indexed(tmp_path / "set", counting_documents(1))
    with pytest.raises(AssertionError, match=r"DataError: .*the \w+ of set .* are not those that the run in .*run was"):
        run_processes(train, 2, at(mine, 1, 1, str(tmp_path / "run")))
    changed = run_processes(train, 1, at(mine, 1, 1, str(tmp_path / "run"), other_data=True))
    assert len(changed[0]) == STEPS - STOP

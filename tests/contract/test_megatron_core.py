"""What this project relies on in megatron-core. When an upgrade breaks one of these, mend megatron_yuan/mcore."""

from __future__ import annotations

import dataclasses
import inspect
import subprocess
import sys

import pytest
import torch

from megatron_yuan.errors import ConfigError
from megatron_yuan.mcore import on_cpu, version
from megatron_yuan.mcore import parallel as door


def test_the_schedules_take_the_arguments_we_pass():
    from megatron.core.pipeline_parallel import schedules

    ours = {"forward_step_func", "data_iterator", "model", "num_microbatches", "seq_length", "micro_batch_size"}
    for name in (
        "forward_backward_no_pipelining",
        "forward_backward_pipelining_without_interleaving",
        "forward_backward_pipelining_with_interleaving",
    ):
        assert ours | {"forward_only"} <= set(inspect.signature(getattr(schedules, name)).parameters), name


def test_what_travels_between_stages_has_the_sizes_we_name():
    # run_microbatches passes (B, S) where megatron says (sequence, batch): it must use them for the shape and
    # nothing else.
    from megatron.core.pipeline_parallel import schedules

    source = inspect.getsource(schedules.get_tensor_shapes)
    assert "tensor_shapes.append((effective_seq_length, micro_batch_size, config.hidden_size))" in source


def test_gradients_stay_sums_where_the_number_of_tokens_is_left_out():
    assert inspect.signature(door.finalize_model_grads).parameters["num_tokens"].default is None
    assert "calculate_per_token_loss" in {field.name for field in dataclasses.fields(door.TransformerConfig)}


def test_the_settings_of_data_parallelism_exist():
    fields = {field.name for field in dataclasses.fields(door.DistributedDataParallelConfig)}
    assert {"grad_reduce_in_fp32", "overlap_grad_reduce", "bucket_size", "use_distributed_optimizer"} <= fields


def test_a_gradient_that_was_added_already_is_not_added_again():
    # model/weight_gradient.py sets this attribute, which DDP clears with the sums.
    source = inspect.getsource(door.DistributedDataParallel)
    assert "not param.grad_added_to_main_grad" in source
    assert "param.grad_added_to_main_grad = False" in inspect.getsource(door.DistributedDataParallel.zero_grad_buffer)


def test_on_a_cpu_megatron_makes_cpu_tensors_and_torch_stays_untouched():
    if torch.cuda.is_available():
        pytest.skip("checks the CPU door; this machine has a GPU")
    on_cpu.use_cpu()
    from megatron.core.pipeline_parallel import schedules

    assert schedules.torch.zeros([], device="cuda").device.type == "cpu"
    assert schedules.torch.cuda.current_device() == torch.device("cpu")
    assert torch.zeros.__module__ is None or "megatron_yuan" not in torch.zeros.__module__


@pytest.mark.parametrize("found", ["0.16.0", "0.15.3", "0.17.0", "1.0.0"])
def test_another_release_is_refused_with_the_command_that_mends_it(monkeypatch, found):
    monkeypatch.setattr(version, "version", lambda _: found)
    with pytest.raises(ConfigError, match=f"{found}.*pip install"):
        version.check_version()


@pytest.mark.parametrize("found", ["0.16.1", "0.16.2", "0.16.1+abc"])
def test_a_supported_release_is_taken(monkeypatch, found):
    monkeypatch.setattr(version, "version", lambda _: found)
    version.check_version()


def test_importing_the_door_says_nothing():
    done = subprocess.run(
        [sys.executable, "-c", "import megatron_yuan.mcore.parallel"], capture_output=True, text=True, check=True
    )
    assert done.stdout + done.stderr == ""

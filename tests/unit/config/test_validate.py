from __future__ import annotations

from typing import Any

import pytest

from megatron_yuan.config.fields import with_values
from megatron_yuan.config.schema import Config
from megatron_yuan.config.validate import RANGES, validate, validate_model, validate_run, validate_world
from megatron_yuan.errors import ConfigError, ParallelError


def config(**values: Any) -> Config:
    return with_values(Config(), values)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"moe_router_topk": 33}, "moe-router-topk 33 is more than num-experts 32"),
        ({"hidden_size": 2049}, "hidden-size 2049 is odd"),
        ({"hidden_size": 2050, "kv_channels": None}, "not divisible by num-attention-heads 16"),
        ({"rotary_percent": 0.001}, "rotates 0 channels"),
        ({"kv_channels": 6, "rotary_percent": 0.5}, "rotates 3 channels"),
        ({"pipeline_model_parallel_size": 5}, "--pipeline-model-parallel-layout"),
        ({"pipeline_model_parallel_size": 2, "pipeline_model_parallel_layout": "12,13"}, "adds up to 25"),
        ({"virtual_pipeline_model_parallel_size": 2}, "pipeline stages, but there is 1"),
        ({"recompute_num_layers": 1}, "--recompute-granularity full"),
        ({"recompute_granularity": "selective", "moe_experts": "looped"}, "--moe-experts grouped"),
        ({"split": "a,b"}, "must be three shares"),
        ({"split": "0,0,0"}, "must be three shares"),
        ({"split": "1,nan,0"}, "must be three shares"),
        ({"seq_length": 8192}, "--max-position-embeddings 8192"),
        ({"eod_id": 134_960}, "not below vocab-size"),
        ({"data_path": ("a",), "train_data_path": ("b",)}, "both given"),
        ({"lr_warmup_iters": 101}, "lr-warmup-iters 101 is more than the 100 steps"),
        ({"min_lr": 1.0}, "min-lr 1.0 is above lr"),
        ({"lr_decay_style": "WSD", "lr_warmup_iters": 50, "lr_wsd_decay_iters": 60}, "does not fit"),
        ({"global_batch_size": 6, "micro_batch_size": 4}, "--global-batch-size 8"),
        ({"finetune": True}, "--load DIR"),
    ],
)
def test_a_combination_that_cannot_work_is_refused_with_the_fix(values: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        validate(config(**values))
    assert len(str(caught.value).splitlines()) <= 2


@pytest.mark.parametrize("name", [name for _, _, names in RANGES for name in names.split()])
def test_a_number_out_of_its_range_is_refused_by_name(name: str) -> None:
    for value in (-1, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match=name.replace("_", "-")):
            validate(config(**{name: value}))


@pytest.mark.parametrize(
    ("name", "value"), [("num_layers", 10**9), ("hidden_size", -32), ("vocab_size", 10**13), ("moe_router_topk", 99)]
)
def test_a_model_that_a_file_describes_is_held_to_the_same_rules(name: str, value: int) -> None:
    described = with_values(Config(), {name: value})
    with pytest.raises(ConfigError, match=f"^config.yaml of X: {name.replace('_', '-')}"):
        validate_model(described.model, "config.yaml of X")


def test_world_size_must_be_a_multiple_of_the_stages() -> None:
    with pytest.raises(ParallelError, match="world size 3 is not divisible by pipeline-model-parallel-size 2"):
        validate_world(config(pipeline_model_parallel_size=2), 3)


def test_an_unset_global_batch_is_one_microbatch_a_replica() -> None:
    resolved = validate_world(config(pipeline_model_parallel_size=2, micro_batch_size=3), 8)
    assert resolved.training.global_batch_size == 12


def test_global_batch_must_come_out_even_over_replicas() -> None:
    with pytest.raises(
        ConfigError, match=r"not divisible by micro-batch-size 2 x 3 replicas = 6;\ngive --global-batch-size 6"
    ):
        validate_world(config(micro_batch_size=2, global_batch_size=8), 3)


def test_the_interleaved_schedule_needs_a_multiple_of_the_stages_in_microbatches() -> None:
    interleaved = config(
        pipeline_model_parallel_size=2, virtual_pipeline_model_parallel_size=2, global_batch_size=3, micro_batch_size=1
    )
    with pytest.raises(ConfigError, match="3 microbatches a replica"):
        validate_world(interleaved, 2)
    assert validate_world(with_values(interleaved, {"global_batch_size": 4}), 2).training.global_batch_size == 4


def test_a_run_needs_data_and_fim_a_tokenizer() -> None:
    with pytest.raises(ConfigError, match="data-path is empty"):
        validate_run(config())
    with pytest.raises(ConfigError, match="tokenizer-model is unset"):
        validate_run(config(data_path=("a",), fim_rate=0.5))
    validate_run(config(data_path=("a",)))


def test_what_is_retained_must_be_saved_and_not_nothing() -> None:
    with pytest.raises(ConfigError, match="save-retain is 0, but must be at least 1; change --save-retain"):
        validate(config(save_retain=0))
    for interval in (0, 300):
        with pytest.raises(
            ConfigError, match=f"save-retain-interval 1000 is not a multiple of save-interval {interval}"
        ):
            validate(config(save_retain_interval=1000, save_interval=interval))
    validate(config(save_retain=1, save_retain_interval=1000, save_interval=500))


def test_a_profile_of_kernels_without_steps_or_of_a_rank_that_is_not_there_is_refused() -> None:
    profiled = config(use_pytorch_profiler=True)
    with pytest.raises(ConfigError, match="use-pytorch-profiler is on, but no steps are given"):
        validate(profiled)
    steps = {"profile_step_start": 1, "profile_step_end": 2, "profile_ranks": (0, 7), "save": "run", "fim_rate": 0.0}
    run = with_values(profiled, {**steps, "data_path": ("set",)})
    with pytest.raises(ConfigError, match="profile-ranks names 7, but the 2 processes are ranks 0 to 1"):
        validate_run(run, 2)
    validate_run(run, 8)

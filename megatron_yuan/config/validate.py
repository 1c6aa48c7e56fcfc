"""Rules between settings. `validate` needs the settings alone; `validate_world` also the number of processes.

Each error names the settings, their values, the rule and the fix.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec

from megatron_yuan.config.fields import as_flag, settings, value_of, with_values
from megatron_yuan.config.layout import chunk_sizes
from megatron_yuan.config.routing import check_router
from megatron_yuan.config.schema import (
    CheckpointConfig,
    Config,
    DataConfig,
    LoggingConfig,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    TrainingConfig,
)
from megatron_yuan.config.spans import parse_spans
from megatron_yuan.errors import ConfigError, ParallelError

# What a number may be, the test, and the settings it holds for. Settings that are unset (None) are let through.
RANGES: tuple[tuple[str, Callable[[float], bool], str], ...] = (
    (
        "at least 1",
        lambda x: x >= 1,
        """num_layers hidden_size num_attention_heads kv_channels ffn_hidden_size vocab_size
        make_vocab_size_divisible_by max_position_embeddings num_experts moe_router_topk seq_length
        pipeline_model_parallel_size virtual_pipeline_model_parallel_size ddp_bucket_size
        recompute_num_layers train_iters micro_batch_size global_batch_size eval_iters eval_tasks_limit exit_interval
        log_interval lr_decay_iters lr_wsd_decay_iters guard_max_skips
        profile_step_start profile_step_end check_weight_hash_across_dp_replicas_interval save_retain
        save_retain_interval""",
    ),
    (
        "0 or more",
        lambda x: x >= 0,
        """num_workers eval_interval eval_tasks_interval save_interval lr_warmup_iters eod_id ckpt_step lr min_lr
        weight_decay clip_grad guard_sigma init_method_std
        num_shared_experts moe_aux_loss_coeff moe_z_loss_coeff moe_importance_loss_coeff
        moe_load_loss_coeff log_experts_interval hang_timeout_in_mins""",
    ),
    ("at most 10000", lambda x: x <= 10_000, "num_layers"),  # a slip, or a file that lies: it would take hours to count
    (
        "below 2^31",
        lambda x: x < 2**31,
        """hidden_size num_attention_heads kv_channels ffn_hidden_size vocab_size make_vocab_size_divisible_by
        max_position_embeddings num_experts num_shared_experts seq_length""",
    ),
    ("in [0, 2^32)", lambda x: 0 <= x < 2**32, "seed"),
    ("at least 2", lambda x: x >= 2, "guard_window"),
    (
        "above 0",
        lambda x: x > 0,
        """norm_epsilon rotary_base rotary_ntk_factor adam_eps peak_tflops moe_expert_capacity_factor
        moe_router_bias_update_rate exit_duration_in_mins max_epochs""",
    ),
    ("0, or at least 1", lambda x: x == 0 or x >= 1, "liveness_timeout_in_secs"),
    ("above 0 and at most a year's 525600", lambda x: 0 < x <= 525_600, "distributed_timeout_minutes"),
    ("in [0, 1)", lambda x: 0 <= x < 1, "attention_dropout hidden_dropout adam_beta1 adam_beta2"),
    ("in [0, 1]", lambda x: 0 <= x <= 1, "fim_rate fim_spm_rate"),
    ("in (0, 1]", lambda x: 0 < x <= 1, "rotary_percent"),
)


def validate(config: Config) -> None:
    """Check what can be checked before the number of processes is known. Raises ConfigError."""
    _check_ranges(config)
    _check_texts(config)
    _check_model(config.model)
    check_router(config.model)
    _check_data(config.data, config.model)
    _check_parallel(config.parallel, config.model)
    _check_optimizer(config.optimizer, config.training)
    _check_batch(config.training, replicas=1)
    for name in ("iterations_to_skip", "skip_samples"):
        parse_spans(name, getattr(config.guard, name))
    _check_retention(config.checkpoint)
    _check_profile(config.logging, config.training)
    if config.checkpoint.finetune and config.checkpoint.load is None:
        raise ConfigError("finetune takes weights from a checkpoint, but load names none; give --load DIR.")


def validate_model(model: ModelConfig, source: str) -> None:
    """Check a model that a file describes, which may be older than some rules on training, or lie. ConfigError."""
    try:
        _check_ranges(replace(Config(), model=model))
        _check_model(model)
        check_router(model)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None


def validate_run(config: Config, world_size: int = 1) -> None:
    """Check what a run needs and a report on one does not: data, and a tokenizer for FIM. Raises ConfigError."""
    data = config.data
    if not data.data_path and not data.train_data_path and data.data_args_path is None:
        raise ConfigError(
            "data-path is empty, so there is nothing to train on;\n"
            "give --data-path PREFIX (of PREFIX.bin and PREFIX.idx, which tools/preprocess_data.py makes)."
        )
    load, save = config.checkpoint.load, config.checkpoint.save
    if load is not None and load != save and not os.path.exists(load):
        raise ConfigError(f"load is {load}, which does not exist; give a run folder, a checkpoint or an HF folder.")
    if save is not None and os.path.exists(save) and not os.path.isdir(save):
        raise ConfigError(f"save is {save}, which is a file; name a folder, new or of an earlier run.")
    _check_sinks(config.logging, save)
    if config.logging.profile_step_start is not None and save is None:
        raise ConfigError("profile-step-start is given, but there is no run folder for the trace; give --save.")
    absent = [rank for rank in config.logging.profile_ranks if not 0 <= rank < world_size]
    if config.logging.use_pytorch_profiler and absent:
        raise ConfigError(
            f"profile-ranks names {absent[0]}, but the {world_size} processes are ranks 0 to {world_size - 1}; "
            "change --profile-ranks."
        )
    if data.fim_rate > 0 and data.tokenizer_model is None:
        raise ConfigError(
            f"fim-rate {data.fim_rate} rearranges text, which needs the tokenizer, but tokenizer-model is unset;\n"
            "give --tokenizer-model FILE, or --fim-rate 0."
        )
    if data.sft and data.tokenizer_model is None:
        raise ConfigError(
            "sft is on, which needs the tokenizer's <sep> and <pad>, but tokenizer-model is unset;\n"
            "give --tokenizer-model FILE, the one that made the data."
        )


def _check_sinks(logging: LoggingConfig, save: str | None) -> None:
    for setting, package in (("tensorboard_dir", "tensorboard"), ("wandb_project", "wandb")):
        if getattr(logging, setting) is not None and find_spec(package) is None:
            raise ConfigError(
                f"{setting.replace('_', '-')} is given, but the package {package} is not installed; "
                f"pip install {package}, or drop {as_flag(setting)}."
            )
    if logging.wandb_project is not None and save is None:
        raise ConfigError(
            f"wandb-project is {logging.wandb_project}, but there is no run folder to write into; give --save."
        )


def validate_world(config: Config, world_size: int) -> Config:
    """`config` with its global batch filled in for `world_size` processes.

    Raises ParallelError where stages do not divide the processes, ConfigError where the batch does not come out even.
    """
    parallel, training = config.parallel, config.training
    stages, virtual = parallel.pipeline_model_parallel_size, parallel.virtual_pipeline_model_parallel_size
    if world_size % stages:
        raise ParallelError(
            f"world size {world_size} is not divisible by pipeline-model-parallel-size {stages};\n"
            f"start a multiple of {stages} processes (torchrun --nproc-per-node), or change "
            "--pipeline-model-parallel-size."
        )
    replicas = world_size // stages
    _check_batch(training, replicas)
    global_batch = training.global_batch_size or training.micro_batch_size * replicas
    microbatches = global_batch // (training.micro_batch_size * replicas)
    if virtual > 1 and microbatches % stages:
        raise ConfigError(
            f"global-batch-size {global_batch} makes {microbatches} microbatches a replica, but the interleaved "
            f"schedule (virtual-pipeline-model-parallel-size {virtual}) needs a multiple of the {stages} stages;\n"
            f"give --global-batch-size {_multiple(global_batch, training.micro_batch_size * replicas * stages)}, "
            "or --virtual-pipeline-model-parallel-size 1."
        )
    return with_values(config, {"global_batch_size": global_batch})


def _check_ranges(config: Config) -> None:
    for rule, holds, names in RANGES:
        for name in names.split():
            value = value_of(config, name)
            if value is not None and not (math.isfinite(value) and holds(value)):
                raise ConfigError(f"{name.replace('_', '-')} is {value}, but must be {rule}; change {as_flag(name)}.")


def _check_texts(config: Config) -> None:
    for name in settings():
        value = value_of(config, name)
        if value == "" or (isinstance(value, tuple) and "" in value):
            raise ConfigError(
                f"{name.replace('_', '-')} is empty (an unset variable of the shell?); give {as_flag(name)} a value, "
                "or leave it out."
            )


def _check_model(model: ModelConfig) -> None:
    if model.hidden_size % 2:
        raise ConfigError(
            f"hidden-size {model.hidden_size} is odd, but the localized filter goes through half of it; "
            "give an even --hidden-size."
        )
    if model.kv_channels is None and model.hidden_size % model.num_attention_heads:
        raise ConfigError(
            f"hidden-size {model.hidden_size} is not divisible by num-attention-heads {model.num_attention_heads}; "
            "give the width of a head with --kv-channels, or change one of them."
        )
    if model.rotary_dim % 2 or model.rotary_dim == 0:
        raise ConfigError(
            f"rotary-percent {model.rotary_percent} of a head of {model.head_dim} rotates {model.rotary_dim} channels, "
            "but they turn in pairs; change --rotary-percent or --kv-channels so that the number is even and not 0."
        )
    if model.rotary_ntk_factor != 1 and model.rotary_dim == 2:
        raise ConfigError(
            f"rotary-ntk-factor {model.rotary_ntk_factor} needs more than 2 rotated channels; raise --rotary-percent."
        )


def _check_data(data: DataConfig, model: ModelConfig) -> None:
    if data.seq_length > model.max_position_embeddings:
        raise ConfigError(
            f"seq-length {data.seq_length} is more than max-position-embeddings {model.max_position_embeddings}; "
            f"give --max-position-embeddings {data.seq_length}, or a shorter --seq-length."
        )
    try:
        shares = [float(share) for share in data.split.split(",")]
    except ValueError:
        shares = []
    if len(shares) != 3 or sum(shares) <= 0 or not all(math.isfinite(s) and s >= 0 for s in shares):
        raise ConfigError(
            f"split {data.split!r} must be three shares, of training, validation and test, none negative, not all 0; "
            "give for example --split 969,30,1."
        )
    if data.data_path and data.train_data_path:
        raise ConfigError(
            "data-path and train-data-path are both given, and either says what to train on; "
            "keep --data-path with --split, or --train-data-path with --valid-data-path."
        )
    named = [each for each in ("data", "train_data", "valid_data", "test_data") if getattr(data, f"{each}_path")]
    if data.data_args_path is not None and named:
        flag = as_flag(f"{named[0]}_path")
        raise ConfigError(
            f"data-args-path {data.data_args_path} and {flag[2:]} are both given, and either says what to read; "
            f"drop {flag} (the file may have lists 'valid' and 'test' too), or --data-args-path."
        )
    if data.sft and data.fim_rate > 0:
        raise ConfigError(
            f"sft is on and fim-rate is {data.fim_rate}, but dialogues are not rearranged; give --fim-rate 0."
        )
    if data.eod_id is not None and data.eod_id >= model.vocab_size:
        raise ConfigError(f"eod-id {data.eod_id} is not below vocab-size {model.vocab_size}; change one of them.")


def _check_parallel(parallel: ParallelConfig, model: ModelConfig) -> None:
    stages, virtual = parallel.pipeline_model_parallel_size, parallel.virtual_pipeline_model_parallel_size
    if virtual > 1 and stages == 1:
        raise ConfigError(
            f"virtual-pipeline-model-parallel-size {virtual} interleaves pipeline stages, but there is 1; "
            "give --pipeline-model-parallel-size 2 or more, or leave it at 1."
        )
    chunk_sizes(model.num_layers, stages, virtual, parallel.pipeline_model_parallel_layout)
    if parallel.recompute_num_layers is not None and parallel.recompute_granularity != "full":
        raise ConfigError(
            f"recompute-num-layers {parallel.recompute_num_layers} counts whole layers, but recompute-granularity is "
            f"{parallel.recompute_granularity}; give --recompute-granularity full, or --recompute-num-layers None."
        )
    if parallel.recompute_granularity == "selective" and model.moe_experts == "looped":
        raise ConfigError(
            "recompute-granularity selective makes the grouped experts' first product again, but moe-experts is "
            "looped; give --moe-experts grouped, or --recompute-granularity full."
        )


def _check_optimizer(optimizer: OptimizerConfig, training: TrainingConfig) -> None:
    decay_iters = optimizer.lr_decay_iters or training.train_iters
    if optimizer.lr_warmup_iters > decay_iters:
        raise ConfigError(
            f"lr-warmup-iters {optimizer.lr_warmup_iters} is more than the {decay_iters} steps of the schedule "
            "(lr-decay-iters, or train-iters where that is unset); lower --lr-warmup-iters."
        )
    if optimizer.lr_decay_style != "constant" and optimizer.min_lr > optimizer.lr:
        raise ConfigError(
            f"min-lr {optimizer.min_lr} is above lr {optimizer.lr}, so the rate would rise; change one of them."
        )
    tail = optimizer.lr_wsd_decay_iters or max(1, decay_iters // 10)
    if optimizer.lr_decay_style == "WSD" and tail > decay_iters - optimizer.lr_warmup_iters:
        unset = " (unset: a tenth)" if optimizer.lr_wsd_decay_iters is None else ""
        raise ConfigError(
            f"lr-wsd-decay-iters {tail}{unset} does not fit between the warmup ({optimizer.lr_warmup_iters} steps) and "
            f"the end of the schedule ({decay_iters}); lower --lr-wsd-decay-iters or --lr-warmup-iters."
        )


def _check_profile(logging: LoggingConfig, training: TrainingConfig) -> None:
    start, end = logging.profile_step_start, logging.profile_step_end
    if logging.use_pytorch_profiler and start is None and end is None:
        raise ConfigError(
            "use-pytorch-profiler is on, but no steps are given; give --profile-step-start and --profile-step-end."
        )
    if (start is None) != (end is None):
        given, missing = ("start", "end") if end is None else ("end", "start")
        raise ConfigError(f"profile-step-{given} is given alone; give --profile-step-{missing} too.")
    if start is not None and end is not None and not start <= end <= training.train_iters:
        raise ConfigError(
            f"profile-step-start {start} to profile-step-end {end} is no range of steps of a run of train-iters "
            f"{training.train_iters}; change one of them."
        )


def _check_retention(checkpoint: CheckpointConfig) -> None:
    kept, interval = checkpoint.save_retain_interval, checkpoint.save_interval
    if kept is not None and (interval == 0 or kept % interval):
        raise ConfigError(
            f"save-retain-interval {kept} is not a multiple of save-interval {interval}, so it keeps no checkpoint; "
            "change one of them."
        )


def _check_batch(training: TrainingConfig, replicas: int) -> None:
    global_batch, micro_batch = training.global_batch_size, training.micro_batch_size
    if global_batch is None or global_batch % (micro_batch * replicas) == 0:
        return
    of = f"micro-batch-size {micro_batch}"
    if replicas > 1:
        of += f" x {replicas} replicas = {micro_batch * replicas}"
    raise ConfigError(
        f"global-batch-size {global_batch} is not divisible by {of};\n"
        f"give --global-batch-size {_multiple(global_batch, micro_batch * replicas)}, or another --micro-batch-size."
    )


def _multiple(number: int, unit: int) -> int:
    """The multiple of `unit` next to `number`, at least one `unit`."""
    return max(1, round(number / unit)) * unit

"""From a checked config to a run that stands where it should: new, resumed, or with the weights of another."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from megatron_yuan import log
from megatron_yuan.checkpoint.load import is_checkpoint, load_checkpoint, open_checkpoint
from megatron_yuan.config.schema import Config
from megatron_yuan.config.yaml_file import to_yaml
from megatron_yuan.convert.hf import load_hf
from megatron_yuan.convert.hf_folder import is_hf_folder, open_hf_folder
from megatron_yuan.data.datasets import Sources, build_training_samples, build_validation_samples
from megatron_yuan.data.fim import FimSamples
from megatron_yuan.data.sampler import Microbatches, SampleSource
from megatron_yuan.data.tokenizer import Tokenizer
from megatron_yuan.parallel.topology import Topology
from megatron_yuan.planning.accounting import TRAINING_PASSES, count_parameters, forward_flops
from megatron_yuan.report.peak import device_peak
from megatron_yuan.report.run_folder import open_run_folder
from megatron_yuan.report.telemetry import SilentTelemetry, Telemetry
from megatron_yuan.report.throughput import Arithmetic
from megatron_yuan.training.run import Run
from megatron_yuan.training.setup import TrainingModel, build_training_model


def start_run(config: Config, topology: Topology, sources: Sources, remarks: Sequence[str] = ()) -> Run:
    """Build data and model, load what the config says, and open the run folder. Called by all ranks together."""
    log.configure(topology.rank, topology.world_size)
    for remark in remarks:
        log.logger.info(remark)
    samples = _training_samples(config, sources)
    held_out = build_validation_samples(sources, config.data, config.training.seed)
    model = build_training_model(config, topology)
    run = Run(
        config=config,
        topology=topology,
        model=model,
        microbatches=_microbatches(samples, config, topology, sources.eod_id),
        validation={name: _microbatches(source, config, topology, sources.eod_id) for name, source in held_out.items()},
        telemetry=SilentTelemetry(),
    )
    origin = _load(run, model)
    run.telemetry = _open_telemetry(run)
    _introduce(run, origin)
    return run


def _training_samples(config: Config, sources: Sources) -> SampleSource:
    data, seed = config.data, config.training.seed
    samples = build_training_samples(sources, data, _samples_in_run(config), seed)
    if data.fim_rate == 0:
        return samples
    assert data.tokenizer_model is not None, "validate_run asks for it"
    return FimSamples(samples, Tokenizer(data.tokenizer_model), data.fim_rate, data.fim_spm_rate, seed, sources.eod_id)


def _samples_in_run(config: Config) -> int:
    return config.training.train_iters * (config.training.global_batch_size or 1)


def _microbatches(source: SampleSource, config: Config, topology: Topology, eod_id: int) -> Microbatches:
    training = config.training
    size = training.global_batch_size or training.micro_batch_size
    return Microbatches(
        source, config.data, eod_id, training.micro_batch_size, size, topology.dp_rank, topology.dp_size
    )


def _load(run: Run, model: TrainingModel) -> str:
    """Put the run where --load, or its own run folder, says; returns where it came from, in words."""
    settings = run.config.checkpoint
    resuming = settings.load is None and settings.save is not None and is_checkpoint(settings.save)
    path = settings.save if resuming else settings.load
    if path is None:
        return f"new weights from seed {run.config.training.seed}"
    if not is_checkpoint(path) and is_hf_folder(Path(path)):
        load_hf(open_hf_folder(Path(path)), {name: p.data for name, p in model.parameters.items()})
        model.optimizer.take_weights()
        return f"weights of the Hugging Face folder {path}"
    checkpoint = open_checkpoint(path, settings.ckpt_step, run.topology)
    with_optimizer = settings.load_optim and not settings.finetune and checkpoint.has_optimizer
    weights = {name: parameter.data for name, parameter in model.parameters.items()}
    state = model.optimizer.state() if with_optimizer else None
    load_checkpoint(checkpoint, run.topology, weights, state, cast=settings.finetune)
    if not with_optimizer:
        model.optimizer.take_weights()
    if not settings.finetune:
        position = checkpoint.run_state
        run.step, run.consumed_samples, run.tokens = position.step, position.consumed_samples, position.tokens
        if with_optimizer:
            model.optimizer.steps = position.optimizer_steps
    return f"{'weights' if settings.finetune else 'everything'} from {checkpoint.path}"


def _open_telemetry(run: Run) -> Telemetry:
    if not run.topology.is_main:
        return SilentTelemetry()
    config = run.config
    folder = open_run_folder(config.checkpoint.save, to_yaml(config)) if config.checkpoint.save else None
    tokenizer = config.data.tokenizer_model
    if folder is not None and tokenizer is not None and Path(tokenizer).resolve() != folder.tokenizer.resolve():
        shutil.copyfile(tokenizer, folder.tokenizer)
    dtype = torch.bfloat16 if config.optimizer.bf16 else torch.float32
    arithmetic = Arithmetic(
        flops_per_token=TRAINING_PASSES * forward_flops(config.model, config.data.seq_length).causal,
        peak=device_peak(run.topology.device, dtype, config.logging.peak_tflops),
        devices=run.topology.world_size,
    )
    return Telemetry(config.logging, folder, arithmetic, config.training.train_iters, run.step, asdict(config))


def _introduce(run: Run, origin: str) -> None:
    config, topology = run.config, run.topology
    count = count_parameters(config.model)
    say = run.telemetry.message
    say(
        f"model: {count.total:,} parameters, {count.active:,} active; "
        f"{config.model.num_layers} layers, {config.model.num_experts} experts, top {config.model.moe_router_topk}"
    )
    say(
        f"layout: {topology.pp_size} stages x {topology.dp_size} replicas x {topology.vp_size} virtual on "
        f"{topology.device.type}; {len(run.microbatches)} microbatches of {config.training.micro_batch_size} x "
        f"{config.data.seq_length} tokens a replica and step"
    )
    say(f"start: step {run.step} of {config.training.train_iters}, {origin}")
    if config.checkpoint.save is None:
        say("nothing is saved: --save was not given")
    elif config.checkpoint.save and Path(config.checkpoint.save).is_dir():
        say(f"run folder: {config.checkpoint.save}")

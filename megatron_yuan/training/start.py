"""From a checked config to a run that stands where it should: new, resumed, or with the weights of another."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from megatron_yuan import log
from megatron_yuan.checkpoint.state import RunState
from megatron_yuan.config.routing import LOOKS_AHEAD
from megatron_yuan.config.schema import Config, ModelConfig
from megatron_yuan.config.spans import NOTHING, Spans, parse_spans
from megatron_yuan.config.yaml_file import to_yaml
from megatron_yuan.data.datasets import Sources, build_training_samples, build_validation_samples
from megatron_yuan.data.fim import FimSamples
from megatron_yuan.data.sample import SampleSource
from megatron_yuan.data.sampler import Microbatches
from megatron_yuan.data.tokenizer import Tokenizer
from megatron_yuan.parallel.topology import Topology
from megatron_yuan.parallel.watch.start import unwatched
from megatron_yuan.parallel.watch.watch import Watch
from megatron_yuan.planning.accounting import TRAINING_PASSES, count_parameters, forward_flops
from megatron_yuan.report.peak import device_peak
from megatron_yuan.report.run_folder import open_run_folder
from megatron_yuan.report.telemetry import SilentTelemetry, Telemetry
from megatron_yuan.report.throughput import Arithmetic
from megatron_yuan.training.claim import claim_run_folder
from megatron_yuan.training.origin import find_origin, load_origin
from megatron_yuan.training.run import Run
from megatron_yuan.training.setup import build_training_model
from megatron_yuan.training.stopping import Stopping


def start_run(
    config: Config,
    topology: Topology,
    sources: Sources,
    remarks: Sequence[str] = (),
    stopping: Stopping | None = None,
    watch: Watch | None = None,
) -> Run:
    """Build data and model, load what the config says, and open the run folder. Called by all ranks together."""
    log.configure(topology.rank, topology.world_size)
    for remark in remarks:
        log.logger.info(remark)
    lock = claim_run_folder(config, topology)
    watch = watch or unwatched()
    origin = find_origin(config, topology, sources.tokenizer_sha256)
    model = build_training_model(config, topology)
    topology.pulse.beat("load")
    # Before the data, whose length depends on where the run stands: what is loaded may not be what was found at first.
    origin, loaded = load_origin(origin, model, config, topology, sources.tokenizer_sha256)
    position = origin.position
    topology.pulse.beat("data")
    samples = _training_samples(config, sources, position)
    held_out = build_validation_samples(sources, config.data, config.training.seed)
    if config.training.eval_interval and not held_out:
        log.logger.info(
            f"warning: eval-interval is {config.training.eval_interval}, but there is nothing to validate on: no set's "
            "validation part fills a sample"
        )
    run = Run(
        config=config,
        topology=topology,
        model=model,
        microbatches=_microbatches(
            samples, config, topology, sources.eod_id, parse_spans("skip_samples", config.guard.skip_samples)
        ),
        set_names=sources.train_names,
        validation={name: _microbatches(source, config, topology, sources.eod_id) for name, source in held_out.items()},
        telemetry=SilentTelemetry(),
        stopping=stopping or Stopping(),
        watch=watch,
        lock=lock,
        step=position.step,
        consumed_samples=position.consumed_samples,
        tokens=position.tokens,
    )
    run.guard.restore(position.extra.get("guard", {}))
    run.telemetry = _open_telemetry(run)
    _introduce(run, loaded)
    return run


def _training_samples(config: Config, sources: Sources, position: RunState) -> SampleSource:
    data, training, seed = config.data, config.training, config.training.seed
    # As many as the whole run has; more where it goes on with smaller batches than it began with. Skipped samples ask
    # for no more: another number of samples would be another order. Then the last ones come again, without loss.
    seen = position.consumed_samples - parse_spans("skip_samples", config.guard.skip_samples).count_below(
        position.consumed_samples
    )
    to_come = (training.train_iters - position.step) * (training.global_batch_size or 1)
    whole = training.train_iters * (training.global_batch_size or 1)
    samples = build_training_samples(sources, data, max(whole, seen + to_come), seed)
    if data.fim_rate == 0:
        return samples
    assert data.tokenizer_model is not None, "validate_run asks for it"
    return FimSamples(samples, Tokenizer(data.tokenizer_model), data.fim_rate, data.fim_spm_rate, seed, sources.eod_id)


def _microbatches(
    source: SampleSource, config: Config, topology: Topology, eod_id: int, skipped: Spans = NOTHING
) -> Microbatches:
    training = config.training
    size = training.global_batch_size or training.micro_batch_size
    return Microbatches(
        source, config.data, eod_id, training.micro_batch_size, size, topology.dp_rank, topology.dp_size, skipped
    )


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
    steps = config.training.train_iters
    return Telemetry(config.logging, folder, arithmetic, steps, run.step, asdict(config), run.last_step)


def _experts(model: ModelConfig) -> str:
    shared = f" and {model.num_shared_experts} shared" if model.num_shared_experts else ""
    return f"{model.num_experts} experts, {model.experts_per_token:g} a token by {model.moe_router} router{shared}"


def _introduce(run: Run, loaded: str) -> None:
    config, topology = run.config, run.topology
    count = count_parameters(config.model)
    say = run.telemetry.message
    say(
        f"model: {count.total:,} parameters, {count.active:,} active; "
        f"{config.model.num_layers} layers, {_experts(config.model)}"
    )
    if config.model.moe_router == "expert-choice":
        say(f"{LOOKS_AHEAD}; losses are not those of a model that can generate")
    if (
        config.model.moe_router_topk == 1
        and config.model.num_experts > 1
        and config.model.moe_router != "expert-choice"
    ):
        say("moe-router-topk is 1: the one expert's weight is always 1, so the router learns from balance losses alone")
    say(
        f"layout: {topology.pp_size} stages x {topology.dp_size} replicas x {topology.vp_size} virtual on "
        f"{topology.device.type}; {len(run.microbatches)} microbatches of {config.training.micro_batch_size} x "
        f"{config.data.seq_length} tokens a replica and step"
    )
    say(f"start: step {run.step} of {config.training.train_iters}, {loaded}")
    if topology.device.type == "cpu" and config.model.attention_dropout > 0:
        say("attention-dropout on a CPU: torch has no flash kernel for it there, so memory grows with S x S")
    if config.checkpoint.save is None:
        say("nothing is saved: --save was not given")
    else:
        say(f"run folder: {config.checkpoint.save}")

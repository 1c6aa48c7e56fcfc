"""From a checked config to a run that stands where it should: new, resumed, or with the weights of another."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from megatron_yuan import log
from megatron_yuan.config.routing import LOOKS_AHEAD
from megatron_yuan.config.schema import Config, ModelConfig
from megatron_yuan.config.yaml_file import to_yaml
from megatron_yuan.data.datasets import Sources
from megatron_yuan.data.sample import SampleSource
from megatron_yuan.data.sampler import Microbatches
from megatron_yuan.parallel.topology import Topology
from megatron_yuan.parallel.watch.start import unwatched
from megatron_yuan.parallel.watch.watch import Watch
from megatron_yuan.planning.accounting import TRAINING_PASSES, count_parameters, forward_flops
from megatron_yuan.report.peak import device_peak
from megatron_yuan.report.run_folder import open_run_folder
from megatron_yuan.report.status import state_after
from megatron_yuan.report.telemetry import SilentTelemetry, Telemetry
from megatron_yuan.report.throughput import Arithmetic
from megatron_yuan.training.auto_layout import settle_layout
from megatron_yuan.training.batches import microbatches, training_batches
from megatron_yuan.training.blend_report import describe_blend
from megatron_yuan.training.claim import claim_run_folder
from megatron_yuan.training.origin import find_origin, load_origin
from megatron_yuan.training.out_of_memory import explaining_memory
from megatron_yuan.training.outcome import Outcome
from megatron_yuan.training.preflight import preflight
from megatron_yuan.training.run import Run, TaskMeasure
from megatron_yuan.training.run_data import check_skipped, not_validated, open_run_data
from megatron_yuan.training.sample_report import describe_samples
from megatron_yuan.training.setup import build_training_model
from megatron_yuan.training.start_up import StartUp
from megatron_yuan.training.stopping import Stopping

SLOW_BF16 = 2.0
"""A run is warned where products in bfloat16 take so many times as long as in float32."""


def start_run(
    config: Config,
    topology: Topology,
    sources: Sources,
    remarks: Sequence[str] = (),
    stopping: Stopping | None = None,
    watch: Watch | None = None,
    outcome: Outcome | None = None,
    task_measure: TaskMeasure | None = None,
) -> Run:
    """Build data and model, load what the config says, and open the run folder. Called by all ranks together."""
    log.configure(topology.rank, topology.world_size)
    for remark in remarks:
        log.logger.info(remark)
    start_up = StartUp(topology)
    topology.pulse.beat("preflight")
    preflight(config, topology, sources)
    topology.pulse.beat("checks")
    lock = claim_run_folder(config, topology)
    outcome = outcome or Outcome(config.checkpoint.save, topology.is_main)
    outcome.claim()
    watch = watch or unwatched()
    watch.ending.on_end = lambda finding: outcome.record(state_after(finding), str(finding))
    config, settled = settle_layout(config, topology)
    for remark in settled:
        log.logger.info(remark)
    origin = find_origin(config, topology, sources.tokenizer_sha256)
    topology.pulse.beat("model")
    with explaining_memory(config, topology):
        model = build_training_model(config, topology)
    topology.pulse.beat("load")
    # Before the data, whose length depends on where the run stands: what is loaded may not be what was found at first.
    origin, loaded = load_origin(origin, model, config, topology, sources.tokenizer_sha256)
    position = origin.position
    topology.pulse.beat("data")
    data = open_run_data(config, sources, position, topology)
    short = check_skipped(config, position, len(data.train))
    if short is not None:
        log.logger.info(short)
    unmeasured = not_validated(config, sources, data.validation)
    if unmeasured is not None:
        log.logger.info(f"warning: {unmeasured}")
    run = Run(
        config=config,
        topology=topology,
        model=model,
        microbatches=training_batches(config, data.train, sources, topology.dp_rank, topology.dp_size),
        set_names=sources.train_names,
        validation=_held_out(data.validation, config, topology, sources),
        test=_held_out(data.test, config, topology, sources),
        languages=sources.languages,
        task_measure=task_measure,
        start_up=start_up,
        data_record=data.record,
        telemetry=SilentTelemetry(),
        stopping=stopping or Stopping(),
        watch=watch,
        outcome=outcome,
        lock=lock,
        step=position.step,
        consumed_samples=position.consumed_samples,
        tokens=position.tokens,
    )
    run.guard.restore(position.extra.get("guard", {}))
    run.telemetry = _open_telemetry(run)
    _introduce(run, loaded)
    if topology.is_main:
        describe_blend(config, sources, data, position, run.telemetry.message)
        describe_samples(sources, data.train, run.microbatches.source, run.telemetry.message)
    return run


def _held_out(
    by_name: Mapping[str, SampleSource], config: Config, topology: Topology, sources: Sources
) -> dict[str, Microbatches]:
    place = sources.eod_id, topology.dp_rank, topology.dp_size
    return {name: microbatches(samples, config, *place) for name, samples in by_name.items()}


def _open_telemetry(run: Run) -> Telemetry:
    if not run.topology.is_main:
        return SilentTelemetry()
    config = run.config
    settings = to_yaml(config)
    folder = open_run_folder(config.checkpoint.save, settings) if config.checkpoint.save else None
    tokenizer = config.data.tokenizer_model
    if folder is not None and tokenizer is not None and Path(tokenizer).resolve() != folder.tokenizer.resolve():
        shutil.copyfile(tokenizer, folder.tokenizer)
    dtype = torch.bfloat16 if config.optimizer.bf16 else torch.float32
    peak = device_peak(run.topology.device, dtype, config.logging.peak_tflops)
    if peak.slowdown > SLOW_BF16:
        log.logger.info(
            f"warning: bf16 is on, but this processor has no arithmetic for it: products take {peak.slowdown:.0f} "
            "times as long as in float32; give --no-bf16"
        )
    arithmetic = Arithmetic(
        flops_per_token=TRAINING_PASSES * forward_flops(config.model, config.data.seq_length).causal,
        peak=peak,
        devices=run.topology.world_size,
    )
    steps = config.training.train_iters
    # What tells later which samples a step consumed.
    session = {"samples": run.consumed_samples, "config_sha256": hashlib.sha256(settings.encode()).hexdigest()}
    return Telemetry(config.logging, folder, arithmetic, steps, run.step, asdict(config), run.last_step, session)


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

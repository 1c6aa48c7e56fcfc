"""What `--dry-run` prints: the run's settings, sizes, costs and memory. Builds nothing and imports no torch."""

from __future__ import annotations

from collections.abc import Iterator

from megatron_yuan.config.fields import with_values
from megatron_yuan.config.layout import AUTO
from megatron_yuan.config.load import diff_from_preset
from megatron_yuan.config.schema import Config
from megatron_yuan.config.yaml_file import to_yaml
from megatron_yuan.parallel.stages import layers_of_chunks
from megatron_yuan.planning.accounting import TRAINING_PASSES, count_parameters, forward_flops
from megatron_yuan.planning.balance import balanced_sizes
from megatron_yuan.planning.costs import costs_on
from megatron_yuan.planning.machine import read_machine
from megatron_yuan.planning.memory import (
    StageMemory,
    attention_widths,
    element_bytes,
    makes_products_again,
    microbatches_of,
    optimizer_bytes,
    plan_memory,
)
from megatron_yuan.planning.remedies import MODELLED_ON, remedies

DEVICES_GB = (80, 141)
"""Memory of the GPUs that the report judges by: A100/H100 and H200, in 10^9 bytes."""


def dry_run_report(config: Config, preset_name: str | None = None, world_size: int | None = None) -> str:
    """The report, ready to print. `preset_name` is what settings are compared with; `world_size` unset, one replica."""
    config, layout_remark = _settled(config)
    stages = config.parallel.pipeline_model_parallel_size
    replicas = max(1, (world_size or stages) // stages)
    paragraphs = (
        _settings(config, preset_name),
        _size(config),
        _cost(config),
        _run(config, replicas),
        [*_layers(config), *layout_remark],
        _memory(config, replicas),
    )
    return "\n\n".join("\n".join(lines) for lines in paragraphs)


def _settled(config: Config) -> tuple[Config, list[str]]:
    """With the split that `auto` would come to by a model of times; the run itself measures."""
    parallel = config.parallel
    if parallel.pipeline_model_parallel_layout != AUTO:
        return config, []
    stages, virtual = parallel.pipeline_model_parallel_size, parallel.virtual_pipeline_model_parallel_size
    machine = read_machine(MODELLED_ON)
    sizes = balanced_sizes(config.model.num_layers, stages, virtual, costs_on(machine, config, 1))
    layout = ",".join(map(str, sizes))
    remark = f"  auto: {layout} by times modelled for {machine.name}; the run measures its own"
    return with_values(config, {"pipeline_model_parallel_layout": layout}), [remark]


def _settings(config: Config, preset_name: str | None) -> Iterator[str]:
    yield "Settings"
    yield from ("  " + line for line in to_yaml(config).splitlines())
    changes = diff_from_preset(config, preset_name)
    base = f"preset {preset_name}" if preset_name else "the defaults"
    yield f"Unlike {base}: " + ("nothing" if not changes else "")
    yield from ("  " + line for line in changes)


def _size(config: Config) -> Iterator[str]:
    parameters, rows = count_parameters(config.model), config.model.padded_vocab_size
    layer = parameters.layer
    share = parameters.active / parameters.total
    head = f"the head another {parameters.head:,}" if parameters.head else "which is also the head"
    yield f"Parameters: {parameters.total:,} total, {parameters.active:,} active a token ({share:.2%})"
    yield (
        f"  each of {parameters.num_layers} layers {layer.total:,}: attention {layer.attention:,}, "
        f"localized filter {layer.filter:,}, norms {layer.norms:,},"
    )
    shared = f", {config.model.num_shared_experts} shared ones of {layer.shared:,}" if layer.shared else ""
    yield (
        f"    router {layer.router:,}, {layer.num_experts} experts of {layer.expert:,} "
        f"(a token meets {layer.experts_per_token:g}){shared}"
    )
    yield f"  embedding {parameters.embedding:,} ({rows:,} rows), {head}; final norm {parameters.final_norm:,}"


def _cost(config: Config) -> Iterator[str]:
    flops, S = forward_flops(config.model, config.data.seq_length), config.data.seq_length
    yield f"FLOPs: {_flops(flops.matrices)} per token forward = 2 x active parameters of matrices"
    yield (
        f"  experts {_flops(flops.experts)}, attention's projections {_flops(flops.projections)}, "
        f"head {_flops(flops.head)}, filter {_flops(flops.filter)}, router {_flops(flops.router)}"
    )
    yield (
        f"  attention scores at {S:,} tokens come on top: {_flops(flops.scores_causal)} causal (what is needed) or "
        f"{_flops(flops.scores_dense)} dense"
    )
    yield (
        f"  training = {TRAINING_PASSES} x forward: {_flops(TRAINING_PASSES * flops.matrices)} without scores, "
        f"{_flops(TRAINING_PASSES * flops.causal)} with causal, {_flops(TRAINING_PASSES * flops.dense)} with dense ones"
    )


def _run(config: Config, replicas: int) -> Iterator[str]:
    training = config.training
    global_batch = training.global_batch_size or training.micro_batch_size * replicas
    step_tokens = global_batch * config.data.seq_length
    tokens = step_tokens * training.train_iters
    flops = TRAINING_PASSES * forward_flops(config.model, config.data.seq_length).causal * tokens
    yield (
        f"Run: {tokens:,} tokens = {training.train_iters:,} steps x {global_batch:,} samples x "
        f"{config.data.seq_length:,} tokens; {flops:.3g} FLOPs with causal scores"
    )
    yield (
        f"  pipeline stages {config.parallel.pipeline_model_parallel_size} x replicas {replicas}: "
        f"{microbatches_of(config, replicas):,} microbatches of "
        f"{training.micro_batch_size} a step in each replica"
    )


def _layers(config: Config) -> Iterator[str]:
    parallel = config.parallel
    placement = layers_of_chunks(
        config.model.num_layers,
        parallel.pipeline_model_parallel_size,
        parallel.virtual_pipeline_model_parallel_size,
        parallel.pipeline_model_parallel_layout,
    )
    yield "Layers per stage"
    for stage, chunks in enumerate(placement):
        edges = ["embedding"] * (stage == 0) + ["final norm and head"] * (stage == len(placement) - 1)
        spans = [f"{chunk[0]}-{chunk[-1]}" if len(chunk) > 1 else str(chunk[0]) for chunk in chunks]
        yield f"  stage {stage}: {sum(map(len, chunks))} layers ({', '.join(spans)})" + "".join(f", {e}" for e in edges)


def _memory(config: Config, replicas: int) -> Iterator[str]:
    plan = plan_memory(config, replicas)
    yield "Memory per stage at its fullest, in GB (10^9 bytes)"
    yield "  stage  weights  gradients  optimizer    state  activations  buffers  working    total"
    for stage in plan:
        columns = (
            (stage.weights, 9),
            (stage.gradients, 11),
            (stage.optimizer, 11),
            (stage.state, 9),
            (stage.activations, 13),
            (stage.buffers, 9),
            (stage.working, 9),
            (stage.total, 9),
        )
        yield f"  {stage.stage:5}" + "".join(f"{_gigabytes(value):>{width}}" for value, width in columns)
    yield from _formulas(config, plan)
    yield from (_verdict(config, plan, gigabytes, replicas) for gigabytes in DEVICES_GB)


def _formulas(config: Config, plan: list[StageMemory]) -> Iterator[str]:
    size, state = element_bytes(config), optimizer_bytes(config)
    master = "float32 master weight, " if size == 2 else ""
    parallel = config.parallel
    interleaved = parallel.virtual_pipeline_model_parallel_size > 1
    flights = ", ".join(str(stage.in_flight) for stage in plan)
    kept = "chunk passes (interleaved)" if interleaved else "microbatches (1F1B: the stages from here on)"
    recompute = {
        "none": "recomputed: what is always, the router's scores and the experts' activation",
        "selective": "recomputed: the experts' first product, 2KF, beside what always is (scores, activation)",
        "full": f"recomputed: {parallel.recompute_num_layers or 'all'} of each chunk's layers, which keep H alone",
    }[parallel.recompute_granularity]
    products = "" if makes_products_again(config) else " + 2KF"
    per_token = f"((6.5 + K) H + {attention_widths(config)}A{products}) x {size} bytes + 5E x 4 (router)"
    yield f"  weights: parameters x {size} bytes ({'bfloat16' if size == 2 else 'float32'})"
    yield "  gradients: parameters x 4 bytes (float32 sums)"
    yield f"  optimizer: parameters x {state} bytes ({master}Adam's two float32 moments)"
    yield "  state: these three, before a token has come"
    yield f"  activations: tokens of a microbatch x layers x [{per_token}]"
    yield "    x what is in flight; the last stage adds 3H a token and the head's gradient"
    yield f"    in flight, by stage: {flights} {kept}"
    yield f"    {recompute}"
    yield "    H hidden, A heads x their width, F ffn, K chosen experts, E experts"
    yield "  buffers: hidden states and gradients on their way between stages, 4H a token"
    yield "  working: a layer's backward (what it recomputes, 3KF a token, its experts' gradients 3EFH), or"
    yield "    if larger the last stage's loss (float32 logits, in chunks, and the head's gradient being summed)"


def _verdict(config: Config, plan: list[StageMemory], gigabytes: int, replicas: int) -> str:
    fullest = max(plan, key=lambda stage: stage.total)
    devices = f"{len(plan) * replicas} x {gigabytes} GB"
    if fullest.total <= gigabytes * 1e9:
        spare = gigabytes - fullest.total / 1e9
        return (
            f"{devices}: fits. The fullest stage, {fullest.stage}, needs {_gigabytes(fullest.total)} GB;\n"
            f"  {spare:.1f} GB are left for the device's context, communication and fragmentation."
        )
    state = max(stage.state for stage in plan)
    over = "weights, gradients and optimizer state alone are more than that" if state > gigabytes * 1e9 else "too much"
    remedy = _remedy(config, gigabytes, replicas)
    return (
        f"{devices}: does not fit. The fullest stage, {fullest.stage}, needs {_gigabytes(fullest.total)} GB "
        f"({_gigabytes(fullest.state)} GB before activations):\n"
        f"  {over}.\n  {remedy}"
    )


def _remedy(config: Config, gigabytes: int, replicas: int) -> str:
    found = remedies(config, replicas, gigabytes * 1e9, more_gpus=True)
    if found:
        return f"It would with {found[0].flags}: {found[0].gpus} x {gigabytes} GB."
    return "Not even a stage a layer with every layer recomputed fits; take a smaller model."


def _flops(number: float) -> str:
    for unit, name in ((1e9, "GFLOP"), (1e6, "MFLOP")):
        if number >= unit:
            return f"{number / unit:.1f} {name}"
    return f"{number / 1e3:.1f} kFLOP"


def _gigabytes(number: int) -> str:
    value = number / 1e9
    return f"{value:.1f}" if value >= 1 else f"{value:.2g}"

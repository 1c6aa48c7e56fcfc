"""A cluster's plan in words and tables."""

from __future__ import annotations

import math
from collections.abc import Iterator

from megatron_yuan.planning.candidates import Layout, TimedLayout
from megatron_yuan.planning.cluster import ClusterPlan, counted, least_gpus
from megatron_yuan.planning.costs import costs_on
from megatron_yuan.planning.machine import FIGURES

GB = 1e9


def cluster_report(plan: ClusterPlan) -> str:
    """Everything, ready to print."""
    paragraphs = [_asked(plan), _ranking(plan), _winner(plan), _not_fitting(plan), _assumptions(plan)]
    return "\n\n".join("\n".join(lines) for lines in map(list, paragraphs) if lines)


def _asked(plan: ClusterPlan) -> Iterator[str]:
    training = plan.config.training
    yield (
        f"{plan.steps * plan.step_tokens:.4g} tokens in {plan.steps:,} steps of {training.global_batch_size:,} x "
        f"{plan.config.data.seq_length:,} tokens on {plan.gpus:,} x {plan.machine.name}"
    )
    usable = plan.machine.usable_bytes / GB
    yield (
        f"{plan.tried:,} layouts tried; {plan.fitting:,} fit into {usable:.4g} GB a GPU, each with the least "
        "recomputation that does"
    )
    if not plan.config.optimizer.bf16:
        yield (
            "warning: bf16 is off, but times are of products in bfloat16, which in float32 take many times as long;\n"
            "  give --bf16, or as --gpu a file whose bf16_tflops is the figure of float32"
        )


def _ranking(plan: ClusterPlan) -> Iterator[str]:
    if not plan.best:
        return
    yield (
        "stages virtual replicas micro recompute   GB  bubble (even)  send GB  reduce GB hidden  step s  tokens/s   MFU"
        "  days  GPU-hours  layers"
    )
    for found in plan.best:
        yield _row(plan, found)
    yield "  virtual: chunks of a stage; recompute: layers of each chunk, or selective: the experts' first product;"
    yield "  GB: of the fullest stage; bubble: idle share (even: of even stages); send: by a stage in a step; reduce: a"
    yield "  stage's gradients, hidden behind backward; MFU, GPU-hours: of the GPUs that are used, stages x replicas"


def _row(plan: ClusterPlan, found: TimedLayout) -> str:
    layout, step = found.layout, found.step
    hidden = 1 - step.exposed_seconds / step.reduce_seconds if step.reduce_seconds else 1.0
    days = plan.days(found)
    return (
        f"{layout.stages:6} {layout.virtual:7} {layout.replicas:8} {layout.config.training.micro_batch_size:5} "
        f"{layout.recomputed:>9} {layout.fullest.total / GB:4.0f} {step.bubble:7.1%} ({step.ideal_bubble:4.0%}) "
        f"{step.sent_bytes / GB:8.1f} {step.reduced_bytes / GB:10.1f} {hidden:6.0%} {found.seconds:7.2f} "
        f"{plan.step_tokens / found.seconds:9,.0f} {plan.mfu(found):5.1%} {days:5.1f} "
        f"{days * 24 * layout.gpus:10,.0f}  {layout.split}"
    )


def _winner(plan: ClusterPlan) -> Iterator[str]:
    if not plan.best:
        return
    found = plan.best[0]
    layout, step = found.layout, found.step
    yield f"The fastest: {_described(layout)}"
    if layout.gpus < plan.gpus:
        idle = plan.gpus - layout.gpus
        yield f"  {idle:,} of {counted(plan.gpus, 'GPU')} are not used: {_why_idle(plan, layout)}"
    yield (
        f"  slowest stage {step.slowest_share:.1%} of all stages' time (even: {1 / layout.stages:.1%}); a message "
        f"{step.message_bytes / 1e6:.1f} MB;"
    )
    yield (f"  all-reduce {step.reduce_seconds:.3f} s, {step.exposed_seconds:.3f} s not hidden")
    yield (
        "  stage  layers  weights  gradients  masters+moments  activations  buffers  working   total GB"
        "   forward + backward ms"
    )
    for stage, seconds in zip(layout.memory, step.stages, strict=True):
        yield (
            f"  {stage.stage:5}  {stage.layers:6} {stage.weights / GB:8.1f} {stage.gradients / GB:10.1f} "
            f"{stage.optimizer / GB:16.1f} {stage.activations / GB:12.1f} {stage.buffers / GB:8.2f} "
            f"{stage.working / GB:8.1f} {stage.total / GB:10.1f}   "
            f"{1e3 * seconds.forward:7.1f} + {1e3 * seconds.backward:.1f}"
        )


def _why_idle(plan: ClusterPlan, layout: Layout) -> str:
    batch, most = plan.config.training.global_batch_size or 1, plan.gpus // layout.stages
    if most == layout.replicas:
        return "too few for another replica of these stages"
    if any(batch % more == 0 for more in range(layout.replicas + 1, min(most, batch) + 1)):
        return "more replicas of these stages would be no faster"
    return "more replicas of these stages do not divide the batch"


def _described(layout: Layout) -> str:
    config = layout.config
    virtual = f" x {layout.virtual} virtual" if layout.virtual > 1 else ""
    split = "" if layout.split == "even" else f", layers {layout.split}"
    recompute = {
        "none": ", nothing recomputed",
        "selective": ", the experts' first product recomputed",
    }.get(layout.recomputed, f", {layout.recomputed} layers of each chunk recomputed")
    return (
        f"{counted(layout.stages, 'stage')}{virtual} x {counted(layout.replicas, 'replica')}, "
        f"micro-batch {config.training.micro_batch_size}{split}{recompute}"
    )


def _not_fitting(plan: ClusterPlan) -> Iterator[str]:
    if not plan.tightest:
        return
    yield "What does not fit, at its least (micro-batch, recomputation and split as small as can be):"
    usable = plan.machine.usable_bytes
    for stages, layout in sorted(plan.tightest.items()):
        stage = layout.fullest
        why = (
            f"weights, gradients, masters and moments alone are {stage.state / GB:.1f}"
            if stage.state > usable
            else f"{stage.state / GB:.1f} before a token has come, {(stage.total - stage.state) / GB:.1f} beyond that"
        )
        count = counted(stages, "stage")
        yield f"  {count}: {stage.total / GB:.1f} GB of {usable / GB:.4g} on stage {stage.stage}: {why}"
    if not plan.best:
        yield _least(plan)


def _least(plan: ClusterPlan) -> str:
    needed = min(layout.fullest.total for layout in plan.tightest.values())
    reserve = plan.machine.reserve_gb.value
    memory = f"or {counted(plan.gpus, 'GPU')} of {math.ceil(needed / GB + reserve)} GB each ({reserve:g} kept free)"
    fewest = least_gpus(plan.config, plan.machine, plan.gpus)
    if fewest is None:
        return f"Nothing fits on {plan.gpus} x {plan.machine.name}, nor would one layer a GPU. The least: {memory[3:]}."
    return f"Nothing fits on {plan.gpus} x {plan.machine.name}. The least that would: {fewest} of them, {memory}."


def _assumptions(plan: ClusterPlan) -> Iterator[str]:
    yield "Where the figures come from"
    for name, figure in plan.machine.figures():
        yield f"  {name} {figure.value:g} ({figure.source}): {FIGURES[name][0]}"
    yield "  memory: counted (megatron_yuan/planning/memory.py), the formulas are those of --dry-run"
    yield f"  times: {costs_on(plan.machine, plan.config, 1).source};"
    yield "    experts evenly loaded; steps by simulating megatron-core's schedule; no stops, saves, validation"

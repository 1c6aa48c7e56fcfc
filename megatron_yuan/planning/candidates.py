"""Every layout of a model on so many GPUs: what each needs, which fit, and how fast those are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from megatron_yuan.config.fields import with_values
from megatron_yuan.config.layout import chunk_sizes, nearly_equal
from megatron_yuan.config.schema import Config
from megatron_yuan.planning.accounting import forward_flops
from megatron_yuan.planning.balance import balanced_sizes, stage_seconds
from megatron_yuan.planning.costs import costs_on
from megatron_yuan.planning.machine import Machine
from megatron_yuan.planning.memory import (
    StageMemory,
    makes_products_again,
    microbatches_of,
    plan_memory,
    recomputed_layers,
)
from megatron_yuan.planning.step_time import StepTime, step_time

MICRO_BATCHES = (1, 2, 4, 8, 16)
EQUAL = 0.005  # a plan is not more exact than that
MOST_MICROBATCHES = 6
"""Times the stages: beyond so many microbatches a step grows by the same with each, and is not simulated to its end."""


@dataclass(frozen=True)
class Layout:
    """A way to spread the model and the batch, and what it needs."""

    config: Config
    replicas: int
    memory: list[StageMemory]

    @property
    def stages(self) -> int:
        """Pipeline stages."""
        return self.config.parallel.pipeline_model_parallel_size

    @property
    def virtual(self) -> int:
        """Chunks of each stage."""
        return self.config.parallel.virtual_pipeline_model_parallel_size

    @property
    def gpus(self) -> int:
        """Used: not always all that there are."""
        return self.stages * self.replicas

    @property
    def fullest(self) -> StageMemory:
        """The stage that needs most."""
        return max(self.memory, key=lambda stage: stage.total)

    @property
    def recomputed(self) -> str:
        """How many layers of each chunk are computed again in backward, or what of each."""
        parallel = self.config.parallel
        return str(parallel.recompute_num_layers or "all") if self._full else parallel.recompute_granularity

    @property
    def _full(self) -> bool:
        return self.config.parallel.recompute_granularity == "full"

    @property
    def split(self) -> str:
        """Layers of each chunk, or that all are equal."""
        return self.config.parallel.pipeline_model_parallel_layout or "even"


@dataclass(frozen=True)
class TimedLayout:
    """A layout that fits, with its step."""

    layout: Layout
    step: StepTime
    seconds: float
    """Of a step of the whole global batch."""


def layouts(config: Config, gpus: int, machine: Machine) -> Iterator[list[Layout]]:
    """Groups of layouts that differ by their recomputation alone, the least first."""
    for stages, virtual, replicas, micro_batch in _shapes(config, gpus):
        for split in _splits(config, stages, virtual, replicas, micro_batch, machine):
            values = {
                "pipeline_model_parallel_size": stages,
                "virtual_pipeline_model_parallel_size": virtual,
                "pipeline_model_parallel_layout": split,
                "micro_batch_size": micro_batch,
                "recompute_granularity": "none",
                "recompute_num_layers": None,
            }
            yield recomputing_more(with_values(config, values), replicas)


def _shapes(config: Config, gpus: int) -> Iterator[tuple[int, int, int, int]]:
    """(stages, virtual, replicas, micro-batch); as many replicas as the GPUs and the batch allow."""
    layers, batch = config.model.num_layers, config.training.global_batch_size or 1
    for stages in range(1, min(layers, gpus) + 1):
        for micro_batch in MICRO_BATCHES:
            if batch % micro_batch:
                continue
            most = min(gpus // stages, batch // micro_batch)
            replicas = next(n for n in range(most, 0, -1) if batch % (micro_batch * n) == 0)
            microbatches = batch // (micro_batch * replicas)
            for virtual in range(1, layers // stages + 1):
                if virtual == 1 or (stages > 1 and microbatches % stages == 0):
                    yield stages, virtual, replicas, micro_batch


def _splits(
    config: Config, stages: int, virtual: int, replicas: int, micro_batch: int, machine: Machine
) -> list[str | None]:
    layers, chunks = config.model.num_layers, stages * virtual
    even = None if layers % chunks == 0 else nearly_equal(layers, chunks)
    shape = with_values(config, {"pipeline_model_parallel_size": stages, "micro_batch_size": micro_batch})
    sizes = balanced_sizes(layers, stages, virtual, costs_on(machine, shape, replicas))
    balanced = None if len(set(sizes)) == 1 else ",".join(map(str, sizes))
    return list(dict.fromkeys((even, balanced)))


def recomputing_more(config: Config, replicas: int) -> list[Layout]:
    """`config`, then with more and more arithmetic done again: selective, layers of each chunk, up to all."""
    parallel = config.parallel
    sizes = chunk_sizes(
        config.model.num_layers,
        parallel.pipeline_model_parallel_size,
        parallel.virtual_pipeline_model_parallel_size,
        parallel.pipeline_model_parallel_layout,
    )
    values = [{"recompute_granularity": "full", "recompute_num_layers": n} for n in range(1, max(sizes) + 1)]
    if config.model.moe_experts == "grouped":
        values.append({"recompute_granularity": "selective", "recompute_num_layers": None})
    changed = [with_values(config, each) for each in values]
    least = _share_again(config, max(sizes))
    more = sorted((share, i) for i, each in enumerate(changed) if (share := _share_again(each, max(sizes))) > least)
    return [Layout(each, replicas, plan_memory(each, replicas)) for each in [config, *(changed[i] for _, i in more)]]


def _share_again(config: Config, layers: int) -> float:
    """Share of a forward pass's arithmetic through a chunk's layers that backward does again."""
    if makes_products_again(config):
        flops = forward_flops(config.model, config.data.seq_length)
        return flops.experts * 2 / 3 / (flops.causal - flops.head)
    return recomputed_layers(config, layers) / layers


def least_seconds(layout: Layout, machine: Machine) -> float:
    """What a step takes at the least: all microbatches on the slowest stage."""
    costs = costs_on(machine, layout.config, layout.replicas)
    sizes = chunk_sizes(layout.config.model.num_layers, layout.stages, layout.virtual, _given(layout.config))
    slowest = max(stage_seconds(sizes, layout.stages, costs))
    return microbatches_of(layout.config, layout.replicas) * slowest


def _given(config: Config) -> str | None:
    return config.parallel.pipeline_model_parallel_layout


def first_that_fits(group: Sequence[Layout], machine: Machine) -> Layout | None:
    """The layout of `group` with the least recomputation that fits, which is the fastest of those that do."""
    return first_within(group, machine.usable_bytes)


def first_within(group: Sequence[Layout], budget: float) -> Layout | None:
    """The first layout of `group` whose fullest stage needs no more than `budget` bytes."""
    return next((each for each in group if each.fullest.total <= budget), None)


def timed(layout: Layout, machine: Machine, whole: bool = False, rounds: int = MOST_MICROBATCHES) -> TimedLayout:
    """With its step simulated; not `whole`: its steady part shortened beyond so many `rounds` of the stages."""
    config, replicas = layout.config, layout.replicas
    costs = costs_on(machine, config, replicas)
    microbatches = microbatches_of(config, replicas)
    most = rounds * layout.stages
    if whole or microbatches <= most:
        step = step_time(config, replicas, costs)
        return TimedLayout(layout, step, step.seconds)
    long, short = (step_time(config, replicas, costs, n) for n in (most, most - layout.stages))
    more = (microbatches - most) * (long.seconds - short.seconds) / layout.stages
    step = _lengthened(long, layout, most, microbatches, more)
    return TimedLayout(layout, step, step.seconds)


def _lengthened(step: StepTime, layout: Layout, simulated: int, microbatches: int, more: float) -> StepTime:
    """The figures of `step`, simulated with fewer microbatches, for all of them, which take `more` seconds."""
    stages = layout.stages
    each = sum(stage.forward + stage.backward for stage in step.stages) / stages  # of a microbatch, mean over stages
    pipeline = simulated * each / (1 - step.bubble) + more
    return replace(
        step,
        seconds=step.seconds + more,
        bubble=1 - microbatches * each / pipeline,
        ideal_bubble=(stages - 1) / (microbatches * layout.virtual + stages - 1),
        sent_bytes=step.sent_bytes // simulated * microbatches,
    )


def fastest(found: Sequence[Layout], machine: Machine, count: int) -> list[TimedLayout]:
    """The `count` fastest, the first simulated whole; of those as fast as it but for `EQUAL`, the fewest GPUs lead."""
    bounds = sorted(((least_seconds(each, machine), i) for i, each in enumerate(found)))
    best: list[TimedLayout] = []
    for bound, i in bounds:
        if len(best) >= count and bound > best[count - 1].seconds:
            break  # nothing that follows can be faster
        best = sorted([*best, timed(found[i], machine)], key=lambda t: (t.seconds, t.layout.gpus))
    near = sum(each.seconds <= best[0].seconds * (1 + EQUAL) for each in best)
    best[:near] = sorted(best[:near], key=lambda t: t.layout.gpus)
    return [timed(each.layout, machine, whole=True) for each in best[:1]] + best[1:count]

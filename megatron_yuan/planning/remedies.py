"""Changes of settings by which a model that does not fit would, the cheapest first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from megatron_yuan.config.fields import as_flag, differences, with_values
from megatron_yuan.config.schema import Config
from megatron_yuan.planning.candidates import Layout, first_within, recomputing_more, timed
from megatron_yuan.planning.machine import read_machine
from megatron_yuan.planning.memory import plan_memory

MODELLED_ON = "h100-80gb"
"""Changes are compared by the times of this GPU: what counts is which of them is the slower."""
ROUNDS = 2
"""Microbatches to simulate, over the stages: the fewest that tell how a step grows with them."""


@dataclass(frozen=True)
class Remedy:
    """One that fits."""

    flags: str
    """To be added to the command."""
    gpus: int
    bytes: int
    """Of the fullest stage."""
    slower: float
    """Time of a step, in GPUs times seconds, over today's."""

    def __str__(self) -> str:
        return f"{self.flags} ({self.bytes / 1e9:.4g} GB, a step {self.slower:.2f}x as long)"


def remedies(config: Config, replicas: int, budget: float, more_gpus: bool = False) -> list[Remedy]:
    """More recomputation, smaller microbatches, more stages (on as many processes, unless `more_gpus`).

    `budget`: bytes that a stage may need, by the plan. Of those that change the same settings the cheapest; fewest
    GPUs first, then the fastest; where `more_gpus`, only those on the fewest.
    """
    machine = read_machine(MODELLED_ON)
    today = timed(Layout(config, replicas, plan_memory(config, replicas)), machine, rounds=ROUNDS)
    found: dict[tuple[str, ...], Remedy] = {}
    for base, count in _bases(config, replicas, more_gpus):
        if any(remedy.gpus < base.parallel.pipeline_model_parallel_size * count for remedy in found.values()):
            break
        layout = first_within(recomputing_more(base, count), budget)
        if layout is None or layout.config == config:
            continue
        seconds = timed(layout, machine, rounds=ROUNDS).seconds * layout.gpus / (today.layout.gpus * today.seconds)
        remedy = Remedy(_flags(layout.config, config), layout.gpus, layout.fullest.total, seconds)
        kind = tuple(name for name, _, _ in differences(layout.config, config))
        found[kind] = min(found.get(kind, remedy), remedy, key=_cost)
    return sorted(found.values(), key=_cost)


def _cost(remedy: Remedy) -> tuple[int, float]:
    return remedy.gpus, remedy.slower


def _bases(config: Config, replicas: int, more_gpus: bool) -> Iterator[tuple[Config, int]]:
    """Stages and microbatches to try, and the replicas of each."""
    layers, batch = config.model.num_layers, config.training.global_batch_size or 1
    stages, micro_batch = config.parallel.pipeline_model_parallel_size, config.training.micro_batch_size
    plain = {"virtual_pipeline_model_parallel_size": 1, "pipeline_model_parallel_layout": None}
    for more in range(stages, layers + 1):
        if more > stages and (layers % more or (not more_gpus and stages * replicas % more)):
            continue
        count = replicas if more_gpus or more == stages else stages * replicas // more
        values = {"pipeline_model_parallel_size": more} | (plain if more > stages else {})
        interleaved = more == stages and config.parallel.virtual_pipeline_model_parallel_size > 1
        together = count * (more if interleaved else 1)  # the interleaved schedule takes groups of as many as stages
        for size in range(micro_batch, 0, -1):
            if batch % (size * together) == 0:
                yield with_values(config, values | {"micro_batch_size": size}), count


def _flags(config: Config, base: Config) -> str:
    return " ".join(f"{as_flag(name)} {new}" for name, _, new in differences(config, base))

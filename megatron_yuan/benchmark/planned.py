"""Is the planner right? Layouts really run here on gloo, their memory and step time beside what was predicted."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from megatron_yuan.benchmark.costs import measured_costs
from megatron_yuan.benchmark.live_memory import live_memory
from megatron_yuan.benchmark.processes import run_processes
from megatron_yuan.config.fields import with_values
from megatron_yuan.config.layout import nearly_equal
from megatron_yuan.config.schema import Config
from megatron_yuan.config.validate import validate, validate_world
from megatron_yuan.data.batch import Batch, make_batch
from megatron_yuan.parallel import topology as processes
from megatron_yuan.parallel.topology import Topology
from megatron_yuan.planning.memory import microbatches_of, plan_memory
from megatron_yuan.planning.step_time import step_time
from megatron_yuan.training.setup import TrainingModel, build_training_model
from megatron_yuan.training.step import run_batch

PROFILED_STEPS = 2
"""The second has its optimizer's moments, and is the fullest."""
WARM_STEPS = 2
COST_ROUNDS = 6
BLOCKS = 2
"""A layout's steps are timed in so many runs, and the pieces' costs before, between and after them."""

Values = dict[str, Any]


@dataclass(frozen=True)
class Found:
    """One layout, predicted and measured."""

    name: str
    world: int
    predicted_bytes: list[int]
    """By rank, as are those measured."""
    measured_bytes: list[int]
    predicted_seconds: float
    measured_seconds: float

    @property
    def memory_errors(self) -> list[float]:
        """Predicted over measured, less 1."""
        return [p / m - 1 for p, m in zip(self.predicted_bytes, self.measured_bytes, strict=True)]

    @property
    def time_error(self) -> float:
        """Predicted over measured, less 1."""
        return self.predicted_seconds / self.measured_seconds - 1


def layouts_to_try(layers: int) -> Iterator[tuple[str, int, Values]]:
    """Name, processes and settings: 1 to 4 stages, virtual ones, replicas, two micro-batches, recomputation."""
    full = {"recompute_granularity": "full", "recompute_num_layers": None}
    yield "1 stage", 1, {}
    yield "1 stage, recomputed", 1, full
    yield "1 stage, selective", 1, {"recompute_granularity": "selective"}
    yield "1 stage, micro-batch 2", 1, {"micro_batch_size": 2}
    yield "1 stage x 2 replicas", 2, {}
    yield "2 stages", 2, _stages(layers, 2)
    yield "2 stages, recomputed", 2, _stages(layers, 2) | full
    yield "2 stages, selective", 2, _stages(layers, 2) | {"recompute_granularity": "selective"}
    yield "2 stages, micro-batch 2", 2, _stages(layers, 2) | {"micro_batch_size": 2}
    yield "2 stages x 2 virtual", 2, _stages(layers, 2, 2)
    yield "2 stages x 2 replicas", 4, _stages(layers, 2)
    yield "3 stages", 3, _stages(layers, 3)
    yield "4 stages", 4, _stages(layers, 4)


def _stages(layers: int, stages: int, virtual: int = 1) -> Values:
    chunks = stages * virtual
    return {
        "pipeline_model_parallel_size": stages,
        "virtual_pipeline_model_parallel_size": virtual,
        "pipeline_model_parallel_layout": nearly_equal(layers, chunks) if layers % chunks else None,
    }


def compare(config: Config, rounds: int, microbatches: int = 4) -> Iterator[Found]:
    """Each layout of `config`, `microbatches` a replica and step, median of `rounds` steps.

    A shared machine's speed drifts over minutes: costs are measured between the steps, and the mean prediction counts.
    """
    for name, world, values in layouts_to_try(config.model.num_layers):
        values = {"micro_batch_size": 1, "global_batch_size": None, "device": "cpu"} | values
        layout = with_values(config, values)
        replicas = world // layout.parallel.pipeline_model_parallel_size
        batch = layout.training.micro_batch_size * replicas * microbatches
        layout = with_values(layout, {"global_batch_size": batch})
        validate(layout)
        layout = validate_world(layout, world)
        costs, seconds = [measured_costs(layout, COST_ROUNDS)], list[float]()
        measured = run_processes(measured_peak, world, layout)
        for block in range(BLOCKS):
            by_rank = run_processes(measured_steps, world, layout, len(range(block, rounds, BLOCKS)))
            seconds += [max(each) for each in zip(*by_rank, strict=True)]
            costs.append(measured_costs(layout, COST_ROUNDS))
        plan = plan_memory(layout, replicas)
        yield Found(
            name,
            world,
            [plan[stage].total for stage, _ in measured],
            [peak for _, peak in measured],
            statistics.mean(step_time(layout, replicas, each).seconds for each in costs),
            statistics.median(seconds),
        )


def measured_peak(config: Config) -> tuple[int, int]:
    """In a process of a layout: its stage, and the peak of its live bytes."""
    topology = processes.start(config)
    try:
        with live_memory() as memory:
            model = build_training_model(config, topology)
            for step in range(PROFILED_STEPS):
                train_step(model, config, topology, random_batches(config, topology, step), step + 1)
        return topology.pp_rank, memory.peak
    finally:
        processes.stop()


def measured_steps(config: Config, rounds: int) -> list[float]:
    """In a process of a layout: seconds of each step of this process."""
    topology = processes.start(config)
    try:
        model = build_training_model(config, topology)
        seconds = list[float]()
        for step in range(WARM_STEPS + rounds):
            batches = random_batches(config, topology, step)
            begin = time.perf_counter()
            train_step(model, config, topology, batches, step + 1)
            seconds.append(time.perf_counter() - begin)
        return seconds[WARM_STEPS:]
    finally:
        processes.stop()


def random_batches(config: Config, topology: Topology, step: int) -> list[Batch]:
    """New ones each step: rows learnt by heart would leave all tokens to a few experts."""
    size = config.training.micro_batch_size, config.data.seq_length + 1
    random = torch.Generator().manual_seed(step * topology.dp_size + topology.dp_rank)
    count = microbatches_of(config, topology.dp_size)
    tokens = [torch.randint(config.model.vocab_size, size, generator=random) for _ in range(count)]
    return [make_batch(each, range(size[0]), eod_id=-1) for each in tokens]


def train_step(model: TrainingModel, config: Config, topology: Topology, batches: list[Batch], step: int) -> None:
    """A step as training makes it, without its reports."""
    for chunk in model.chunks:
        chunk.zero_grad_buffer()
    sums = run_batch(model.chunks, iter(batches), len(batches), config, topology, step)
    norm = model.optimizer.gradient_norm(topology, sums.tokens)
    model.optimizer.step(config.optimizer.lr, topology.of_main([norm])[0], sums.tokens)


def plan(config: Config, rounds: int) -> Mapping[str, Any]:
    """Print and return the comparison."""
    print(f"{'layout':<26}{'rank':>5}{'GB predicted':>14}{'measured':>10}{'':>8}{'s predicted':>13}{'measured':>10}")
    result: dict[str, Any] = {}
    for found in compare(config, rounds):
        for rank, error in enumerate(found.memory_errors):
            memory = f"{found.predicted_bytes[rank] / 1e9:14.3f}{found.measured_bytes[rank] / 1e9:10.3f}{error:+8.1%}"
            seconds = f"{found.predicted_seconds:13.3f}{found.measured_seconds:10.3f}{found.time_error:+8.1%}"
            print(f"{found.name if rank == 0 else '':<26}{rank:5}{memory}{seconds if rank == 0 else ''}", flush=True)
        result[found.name] = vars(found) | {"memory_errors": found.memory_errors, "time_error": found.time_error}
    return result

"""What `--pipeline-model-parallel-layout auto` gains over equal stages here, beside what the simulation promises."""

from __future__ import annotations

import statistics
from typing import Any

from megatron_yuan.benchmark.costs import measured_costs
from megatron_yuan.benchmark.planned import measured_steps
from megatron_yuan.benchmark.processes import run_processes
from megatron_yuan.config.fields import with_values
from megatron_yuan.config.layout import AUTO, nearly_equal
from megatron_yuan.config.schema import Config
from megatron_yuan.config.validate import validate, validate_world
from megatron_yuan.errors import ConfigError
from megatron_yuan.parallel import topology as processes
from megatron_yuan.planning.step_time import step_time
from megatron_yuan.training.auto_layout import settle_layout

BLOCKS = 4
"""Equal and auto are timed in turns, so many each: a machine's drift meets both."""


def settled(config: Config) -> tuple[str, list[str]]:
    """In a process of the run: the layers of each chunk that auto comes to, and what it says."""
    topology = processes.start(config)
    try:
        config, remarks = settle_layout(config, topology)
        return config.parallel.pipeline_model_parallel_layout or "", remarks
    finally:
        processes.stop()


def report(config: Config, rounds: int) -> dict[str, Any]:
    """Print and return times of both layouts, promised and measured."""
    stages = config.parallel.pipeline_model_parallel_size
    if stages < 2:
        raise ConfigError(
            f"pipeline-model-parallel-size is {stages}, and one stage has nothing to balance; give 2 or more."
        )
    chunks = stages * config.parallel.virtual_pipeline_model_parallel_size
    equal = nearly_equal(config.model.num_layers, chunks)
    config = with_values(config, {"pipeline_model_parallel_layout": AUTO, "device": "cpu"})
    validate(config)
    config = validate_world(config, stages)
    auto, remarks = run_processes(settled, stages, config)[0]
    print("\n".join(remarks))
    if auto == equal:
        print(f"auto comes to equal stages, {equal}: there is nothing to gain")
        return {"equal": equal, "auto": auto}
    splits = {"equal": equal, "auto": auto}
    layouts = {name: with_values(config, {"pipeline_model_parallel_layout": each}) for name, each in splits.items()}
    measured = {name: list[float]() for name in layouts}
    promised = {name: list[float]() for name in layouts}
    for block in range(BLOCKS):
        costs = measured_costs(config, max(3, rounds // BLOCKS))
        for name, layout in layouts.items():
            by_rank = run_processes(measured_steps, stages, layout, len(range(block, rounds, BLOCKS)) or 1)
            measured[name] += [max(each) for each in zip(*by_rank, strict=True)]
            promised[name].append(step_time(layout, 1, costs).seconds)
    result: dict[str, Any] = {}
    for name in layouts:
        split, means = splits[name], (statistics.fmean(promised[name]), statistics.median(measured[name]))
        result[name] = {"layers": split, "promised": means[0], "measured": means[1]}
        print(f"{name:<6} {split:<16} {means[0]:8.3f} s promised {means[1]:8.3f} s measured")
    gains = {kind: 1 - result["auto"][kind] / result["equal"][kind] for kind in ("promised", "measured")}
    share = gains["measured"] / gains["promised"]
    print(f"gain   {gains['promised']:.1%} promised, {gains['measured']:.1%} measured: {share:.0%} of the promise")
    return result | {"gains": gains}

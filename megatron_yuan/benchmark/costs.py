"""Seconds of the pieces of a step, measured on this machine: what the planner's simulation is fed with.

Two processes of one thread each measure: first one of them alone, then both at once, which tells how much they slow
each other down (they share the memory's bandwidth), then what goes between them.
"""

from __future__ import annotations

import os
import statistics

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_yuan.benchmark.processes import run_processes
from megatron_yuan.config.fields import with_values
from megatron_yuan.config.schema import Config
from megatron_yuan.parallel import topology as processes
from megatron_yuan.parallel.topology import Topology
from megatron_yuan.planning.costs import Costs
from megatron_yuan.planning.simulation import Cores
from megatron_yuan.training.pieces import Pieces, PieceTimes, edge_of, layer_of, seconds_of

CPU = torch.device("cpu")


def measured_costs(config: Config, rounds: int) -> Costs:
    """Of `config`'s layers and micro-batch on this machine's CPU, for processes of one thread each."""
    alone, together, between = run_processes(_measure, 2, config, rounds)[0]
    ratio = _pass(alone, "middle") / _pass(together, "middle")
    # The simulation slows down what runs together by `ratio`: of pieces that are slowed down otherwise, this much.
    of_rest = {name: together[name] * ratio for name in ("zero", "norm", "optimizer")}
    return Costs(
        layer=layer_of(alone),
        embedding=edge_of(alone, "first"),
        head=edge_of(alone, "last"),
        message_latency=between["latency"],
        message=between["message"] * ratio,
        reduce_latency=between["latency"],
        reduce=between["reduce"] * ratio,
        tied=between["reduce"] * ratio,
        cores=Cores(os.cpu_count() or 1, min(1.0, ratio)),
        source=f"measured by tools/benchmark.py --part plan, {rounds} rounds, {os.cpu_count()} cores",
        **of_rest,
    )


def _pass(pieces: Pieces, part: str) -> float:
    return pieces[f"{part} forward"] + pieces[f"{part} backward"]


def _measure(config: Config, rounds: int) -> tuple[Pieces, Pieces, Pieces]:
    alone = {"pipeline_model_parallel_size": 1, "virtual_pipeline_model_parallel_size": 1, "device": "cpu"}
    topology = processes.start(with_values(config, alone | {"pipeline_model_parallel_layout": None, "num_layers": 3}))
    try:
        bench = PieceTimes(config, topology)
        bench.pieces(1)
        topology.barrier()
        first = bench.pieces(rounds) if topology.is_main else {}
        topology.barrier()
        both = bench.pieces(rounds)
        topology.barrier()
        return first, both, _between(topology, bench.message)
    finally:
        processes.stop()


def _between(topology: Topology, message: Tensor) -> Pieces:
    """Seconds of a message at all, and a byte of it; and a byte of an all-reduce."""
    other = 1 - topology.rank

    def send(tensor: Tensor) -> None:
        (dist.send if topology.rank == 0 else dist.recv)(tensor, other)
        (dist.recv if topology.rank == 0 else dist.send)(tensor, other)

    small, large = message.flatten()[:1].clone(), message.clone()
    buffer = torch.ones(2**24)
    for each in (small, large):
        send(each)
    dist.all_reduce(buffer)
    latency = statistics.median(seconds_of(lambda: send(small), CPU) / 2 for _ in range(20))
    whole = statistics.median(seconds_of(lambda: send(large), CPU) / 2 for _ in range(20))
    reduced = statistics.median(seconds_of(lambda: dist.all_reduce(buffer), CPU) for _ in range(5))
    message_bytes = large.numel() * large.element_size()
    return {
        "latency": latency,
        "message": max(0.0, whole - latency) / message_bytes,
        "reduce": reduced / (buffer.numel() * buffer.element_size()),
    }

"""`--pipeline-model-parallel-layout auto`: the split of the layers that evens the times of this run's own stages.

Every rank times a layer, the embedding and the head on its device, all at once, as they will compute; what counts is
the median over the ranks, so that all take the same decision. A run that goes on keeps the split that its folder has:
measured again, another might come out, and sums of gradients would be rounded otherwise.
"""

from __future__ import annotations

import gc
import statistics
from dataclasses import replace
from pathlib import Path

import torch

from megatron_yuan.config.fields import with_values
from megatron_yuan.config.layout import AUTO, chunk_sizes
from megatron_yuan.config.schema import Config, ParallelConfig
from megatron_yuan.config.yaml_file import read_yaml
from megatron_yuan.errors import ConfigError
from megatron_yuan.parallel.topology import Topology
from megatron_yuan.planning.balance import balanced_sizes, slowest_share, stage_seconds
from megatron_yuan.planning.costs import Costs, PassSeconds
from megatron_yuan.report.run_folder import RunFolder
from megatron_yuan.training.pieces import PieceTimes, edge_of, layer_of

ROUNDS = 5


def settle_layout(config: Config, topology: Topology) -> tuple[Config, list[str]]:
    """`config` with the layout that `auto` comes to, and what to tell of it. Called by all ranks together."""
    if config.parallel.pipeline_model_parallel_layout != AUTO:
        return config, []
    if topology.pp_size == 1:
        return _with_layout(config, None), []
    recorded = topology.gather(_recorded(config) if topology.is_main else None)[0]
    if recorded is not None:
        return _with_layout(config, recorded), [f"layers a stage, as this run has begun: {recorded}"]
    costs = _measure(config, topology)
    stages, virtual, layers = topology.pp_size, topology.vp_size, config.model.num_layers
    sizes = balanced_sizes(layers, stages, virtual, costs)
    before, after = (
        slowest_share(stage_seconds(each, stages, costs))
        for each in (chunk_sizes(layers, stages, virtual, AUTO), sizes)
    )
    layout = ",".join(map(str, sizes))
    layer, first, last = (1e3 * (p.forward + p.backward) for p in (costs.layer, costs.embedding, costs.head))
    return _with_layout(config, layout), [
        f"layers a stage, by measured times: {layout} (a layer {layer:.1f} ms forward and backward, embedding "
        f"{first:.1f}, head {last:.1f})",
        f"the slowest stage has {after:.1%} of all stages' time; with equal stages it would be {before:.1%}",
    ]


def _with_layout(config: Config, layout: str | None) -> Config:
    return with_values(config, {"pipeline_model_parallel_layout": layout})


def _recorded(config: Config) -> str | None:
    """The split in the run folder, where it is one of as many stages and layers."""
    if config.checkpoint.save is None:
        return None
    try:
        earlier = read_yaml(RunFolder(Path(config.checkpoint.save)).config)
    except ConfigError:  # there is none yet, or it is not ours to judge here
        return None
    same = _shape(earlier.parallel) == _shape(config.parallel) and earlier.model.num_layers == config.model.num_layers
    layout = earlier.parallel.pipeline_model_parallel_layout
    return layout if same and layout != AUTO else None


def _shape(parallel: ParallelConfig) -> tuple[int, int]:
    return parallel.pipeline_model_parallel_size, parallel.virtual_pipeline_model_parallel_size


def _made_again(layer: PassSeconds, parallel: ParallelConfig) -> PassSeconds:
    """With the forward pass that backward repeats, where it does of all layers; of N it adds as much to each chunk."""
    again = parallel.recompute_granularity == "full" and parallel.recompute_num_layers is None
    return replace(layer, backward=layer.backward + layer.forward) if again else layer


def _measure(config: Config, topology: Topology) -> Costs:
    bench = PieceTimes(config, topology)
    bench.pieces(1)
    topology.barrier()
    mine = bench.pieces(ROUNDS)
    del bench
    gc.collect()
    if topology.device.type == "cuda":
        torch.cuda.empty_cache()
    every = topology.gather(mine)
    pieces = {name: statistics.median(each[name] for each in every) for name in mine}
    return Costs(
        layer=_made_again(layer_of(pieces), config.parallel),
        embedding=edge_of(pieces, "first"),
        head=edge_of(pieces, "last"),
        zero=pieces["zero"],
        norm=pieces["norm"],
        optimizer=pieces["optimizer"],
        message_latency=0.0,
        message=0.0,
        reduce_latency=0.0,
        reduce=0.0,
        tied=0.0,
        cores=None,
        source="measured by this run's ranks as it started",
    )

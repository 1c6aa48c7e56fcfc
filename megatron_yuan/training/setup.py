"""From a config and a place in the topology to this process's part of the model, ready to train."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from megatron_yuan.config.schema import Config
from megatron_yuan.mcore.parallel import DistributedDataParallel
from megatron_yuan.model.initialize import initialize
from megatron_yuan.model.model import YuanModel
from megatron_yuan.model.moe.balance import move_bias
from megatron_yuan.parallel.chunk import PipelineChunk, schedule_config, wrap_chunks
from megatron_yuan.parallel.stages import layers_of_chunks
from megatron_yuan.parallel.topology import Topology
from megatron_yuan.planning.memory import recomputed_layers
from megatron_yuan.training.memory import held_bytes
from megatron_yuan.training.optimizer import MixedPrecisionAdamW

TIED = "embedding.weight"


@dataclass(frozen=True)
class TrainingModel:
    """This process's chunks of the model, wrapped for the schedules, and their optimizer."""

    chunks: Sequence[DistributedDataParallel]
    parameters: dict[str, nn.Parameter]
    """Every parameter held here, by global name."""
    copies: frozenset[str]
    """Names among them whose original is on another stage: the last stage's tied embedding."""
    optimizer: MixedPrecisionAdamW
    bias_update_rate: float
    held_before: float
    """Bytes that this process held before the model was built: on a CPU itself and its libraries."""

    def move_expert_biases(self, load_LE: Tensor) -> None:
        """After a step in which the experts of all layers had these loads: balance without a loss, where asked for."""
        for name, parameter in self.parameters.items():
            if name.endswith("expert_bias"):
                move_bias(parameter, load_LE[int(name.split(".")[1])], self.bias_update_rate)


def build_training_model(config: Config, topology: Topology) -> TrainingModel:
    """Make this process's part, initialised from the seed, in the run's dtype and on its device."""
    before, _ = held_bytes(topology.device)
    parts = _build_parts(config, topology)
    transformer = schedule_config(config, topology)
    tied = not config.model.untie_embeddings_and_output_weights
    chunks = []
    for i, part in enumerate(parts):
        holds_tied = tied and (part.is_first or part.is_last)
        chunks.append(PipelineChunk(part, dict(part.named_parameters())[TIED] if holds_tied else None, transformer, i))
    wrapped = wrap_chunks(chunks, config, topology)
    parameters = {name: parameter for part in parts for name, parameter in part.named_parameters()}
    copies = frozenset({TIED} if tied and not topology.is_first_stage and topology.is_last_stage else ())
    trained = {name: parameter for name, parameter in parameters.items() if parameter.requires_grad}
    optimizer = MixedPrecisionAdamW(trained, copies, config.optimizer)
    return TrainingModel(wrapped, parameters, copies, optimizer, config.model.moe_router_bias_update_rate, before)


def _build_parts(config: Config, topology: Topology) -> list[YuanModel]:
    layout = config.parallel.pipeline_model_parallel_layout
    chunks = layers_of_chunks(config.model.num_layers, topology.pp_size, topology.vp_size, layout)[topology.pp_rank]
    first, last = topology.is_first_stage, topology.is_last_stage
    return [
        build_part(config, topology.device, layers, first and i == 0, last and i == topology.vp_size - 1)
        for i, layers in enumerate(chunks)
    ]


def build_part(config: Config, device: torch.device, layers: Sequence[int], is_first: bool, is_last: bool) -> YuanModel:
    """These layers and edges of the model, initialised from the seed, in the run's dtype, recomputing as it says."""
    parallel, default = config.parallel, torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16 if config.optimizer.bf16 else torch.float32)
    try:
        with torch.device(device):
            part = YuanModel(
                config.model,
                layers,
                is_first,
                is_last,
                recompute_layers=recomputed_layers(config, len(layers)),
                recompute_products=parallel.recompute_granularity == "selective",
            )
    finally:
        torch.set_default_dtype(default)
    initialize(part, config.model, config.training.seed)
    return part

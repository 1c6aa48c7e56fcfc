"""One training step, and its half without gradients: microbatches through the pipeline, sums over all of them.

Shapes: B batch, S sequence, H hidden, L layers of the whole model, E experts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor

from megatron_yuan.config.schema import Config
from megatron_yuan.data.batch import Batch
from megatron_yuan.mcore.parallel import DistributedDataParallel
from megatron_yuan.model.context import token_context
from megatron_yuan.model.loss import cross_entropy_sum
from megatron_yuan.model.model import YuanModel
from megatron_yuan.model.randomness import key
from megatron_yuan.parallel.schedule import run_microbatches
from megatron_yuan.parallel.topology import Topology


class Sums(NamedTuple):
    """Totals over all microbatches and replicas, the same on every rank."""

    loss_sum: float
    """Sum of the token losses, in nats."""
    tokens: int
    """Number of tokens that had a loss."""
    expert_load_LE: Tensor
    """Rows that each expert of each layer got, int64 on the CPU."""


def run_batch(
    chunks: Sequence[DistributedDataParallel],
    microbatches: Iterator[Batch],
    num_microbatches: int,
    config: Config,
    topology: Topology,
    step: int | None,
) -> Sums:
    """Forward, and backward where `step` says that this trains; then the sums.

    `step` keys every random draw together with the seed and the sample; None: nothing is random and no gradient is
    made.
    """
    load_LE = torch.zeros(
        config.model.num_layers, config.model.num_experts, dtype=torch.float64, device=topology.device
    )
    reports = run_microbatches(
        chunks,
        microbatches,
        _forward_step(config, topology, step, load_LE),
        num_microbatches,
        (config.training.micro_batch_size, config.data.seq_length),
        forward_only=step is None,
    )
    loss = torch.stack(reports).sum(dim=0) if reports else load_LE.new_zeros(2)
    # One collective for everything: float64 counts exactly up to 2^53.
    sums = topology.sum_over_replicas(topology.sum_over_stages(torch.cat((loss, load_LE.flatten())))).cpu()
    return Sums(sums[0].item(), int(sums[1].item()), sums[2:].view_as(load_LE).long())


def _forward_step(config: Config, topology: Topology, step: int | None, load_LE: Tensor) -> Callable:
    dtype = torch.bfloat16 if config.optimizer.bf16 else torch.float32

    def forward_step(batches: Iterator[Batch], chunk: DistributedDataParallel) -> tuple[Tensor, Callable]:
        batch = next(batches).to(topology.device)
        part = cast(YuanModel, chunk.module.part)
        keys = None if step is None else [key(config.training.seed, step, sample) for sample in batch.sample_ids]
        context = token_context(config.model, batch.position_ids, dtype, batch.document_start, keys)
        output = chunk(batch.tokens if part.is_first else chunk.module.received, context)
        load_LE[part.layer_ids] += output.expert_load_LE

        def loss(hidden_BSH: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            mask_T = batch.loss_mask.flatten()
            total = cross_entropy_sum(hidden_BSH.flatten(0, 1), part.output_weight, batch.labels.flatten(), mask_T)
            tokens = mask_T.sum()
            return total, tokens.int(), torch.stack((total.detach(), tokens)).double()

        return output.hidden_BSH, loss

    return forward_step

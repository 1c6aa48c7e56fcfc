"""One training step, and its half without gradients: microbatches through the pipeline, sums over all of them.

Shapes: B batch, S sequence, T = B x S tokens, H hidden, L layers of the whole model, D sets of the blend,
X what is counted of a layer's routing.
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
from megatron_yuan.model.loss import linear_cross_entropy
from megatron_yuan.model.model import YuanModel
from megatron_yuan.model.moe.balance import Balance
from megatron_yuan.model.moe.stats import RouterStats, pack, unpack
from megatron_yuan.model.randomness import key
from megatron_yuan.parallel.schedule import run_microbatches
from megatron_yuan.parallel.topology import Topology
from megatron_yuan.training.load_tally import LoadTally


class Sums(NamedTuple):
    """Totals over all microbatches and replicas, the same on every rank."""

    loss_sum_D: list[float]
    """Sum of the token losses of each set of the blend, in nats."""
    tokens_D: list[int]
    """Number of each set's tokens that had a loss."""
    routing: RouterStats
    """What the routing of each layer of the whole model looked like, float64 on the CPU."""
    votes: list[float]
    """What the ranks voted, summed."""

    @property
    def loss_sum(self) -> float:
        """Sum of all token losses."""
        return sum(self.loss_sum_D)

    @property
    def tokens(self) -> int:
        """Number of all tokens that had a loss."""
        return sum(self.tokens_D)


def run_batch(
    chunks: Sequence[DistributedDataParallel],
    microbatches: Iterator[Batch],
    num_microbatches: int,
    config: Config,
    topology: Topology,
    step: int | None,
    num_sets: int = 1,
    votes: Sequence[float] = (),
) -> Sums:
    """Forward, and backward where `step` says that this trains; then the sums.

    `step` keys every random draw together with the seed and the sample; None: nothing is random and no gradient is
    made. `num_sets`: sets of the blend, whose losses are kept apart. `votes`: numbers of this rank, to be summed.
    """
    routing_LX = torch.zeros(
        config.model.num_layers, config.model.num_experts**2 + 2, dtype=torch.float64, device=topology.device
    )
    reports = run_microbatches(
        chunks,
        microbatches,
        forward_step_of(config, topology, step, routing_LX, num_sets),
        num_microbatches,
        (config.training.micro_batch_size, config.data.seq_length),
        forward_only=step is None,
    )
    losses_2D = torch.stack(reports).sum(dim=0) if reports else routing_LX.new_zeros(2, num_sets)
    # One collective for everything.
    parts = (losses_2D.flatten(), routing_LX.flatten(), routing_LX.new_tensor(list(votes)))
    mine = topology.sum_over_replicas(topology.sum_over_stages(torch.cat(parts)))
    topology.pulse.beat(f"{topology.pulse.during}sums", waits=True)  # a device that waits for others is waited for here
    losses, routing, voted = mine.cpu().split([part.numel() for part in parts])
    loss_sum_D, tokens_D = losses.view(2, num_sets).tolist()
    return Sums(loss_sum_D, [int(each) for each in tokens_D], unpack(routing.view_as(routing_LX)), voted.tolist())


def forward_step_of(
    config: Config, topology: Topology, step: int | None, routing_LX: Tensor, num_sets: int
) -> Callable:
    """What the schedules call for each microbatch on each chunk; `routing_LX` is added to. Others as in `run_batch`."""
    dtype = torch.bfloat16 if config.optimizer.bf16 else torch.float32
    tally = LoadTally(config.model, topology)

    def forward_step(batches: Iterator[Batch], chunk: DistributedDataParallel) -> tuple[Tensor, Callable]:
        pulse = topology.pulse
        at = pulse.position
        pulse.beat(f"{pulse.during}data", at.microbatch, chunk=at.chunk)
        batch = next(batches).to(topology.device)
        pulse.beat(f"{pulse.during}forward", at.microbatch, chunk=at.chunk)
        part = cast(YuanModel, chunk.module.part)
        keys, balance = None, None
        if step is not None:
            keys = [key(config.training.seed, step, sample) for sample in batch.sample_ids]
            balance = Balance(batch.loss_mask.sum(), tally.of_microbatch())
        context = token_context(config.model, batch.position_ids, dtype, batch.document_start, keys, balance=balance)
        output = chunk(batch.tokens if part.is_first else chunk.module.received, context)
        assert output.stats is not None
        routing_LX[part.layer_ids] += pack(output.stats)

        def loss(hidden_BSH: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            labels_T, mask_T = batch.labels.flatten(), batch.loss_mask.flatten()
            total, losses_T = linear_cross_entropy(hidden_BSH.flatten(0, 1), part.output_weight, labels_T, mask_T)
            by_sample_2B = torch.stack((losses_T, mask_T)).double().view(2, len(batch.set_ids), -1).sum(dim=2)
            sets_B = torch.tensor(batch.set_ids, device=total.device)
            by_set_2D = by_sample_2B.new_zeros(2, num_sets).index_add(1, sets_B, by_sample_2B)
            return total, by_set_2D[1].sum().int(), by_set_2D

        return output.hidden_BSH, loss

    return forward_step

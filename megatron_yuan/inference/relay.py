"""Hidden states from stage to stage, and what the last stage finds to all of them; for one process, nothing at all.

Every stage runs the same loop over the same tokens; only hidden states and the few numbers found at the end travel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_yuan.parallel.topology import Topology
from megatron_yuan.parallel.watch.pulse import Pulse


class Relay:
    """This process's place in the pipeline."""

    def __init__(self, topology: Topology | None = None) -> None:
        self.stage, self.stages = (0, 1) if topology is None else (topology.pp_rank, topology.pp_size)
        self.replica, self.replicas = (0, 1) if topology is None else (topology.dp_rank, topology.dp_size)
        self.stage_group = None if topology is None else topology.pp_group
        self.replica_group = None if topology is None else topology.dp_group
        self.pulse = Pulse() if topology is None else topology.pulse
        self._sending: tuple[Any, Tensor] | None = None

    @property
    def is_first(self) -> bool:
        """Where the embedding is."""
        return self.stage == 0

    @property
    def is_last(self) -> bool:
        """Where the scores are."""
        return self.stage == self.stages - 1

    def receive(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """What the stage before sent."""
        received = like.new_empty(*shape)
        dist.recv(received, group=self.stage_group, group_src=self.stage - 1)
        return received

    def send(self, x: Tensor) -> None:
        """Hand on to the next stage, which may still be at what it got before: prompts go through in chunks."""
        if self._sending is not None:
            self._sending[0].wait()
        x = x.contiguous()
        self._sending = dist.isend(x, group=self.stage_group, group_dst=self.stage + 1), x

    def share(self, found: Tensor | None, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        """The last stage's `found`, of this shape and type, on every stage."""
        if self.stages == 1:
            assert found is not None
            return found
        shared = torch.empty(*shape, dtype=dtype, device=device) if found is None else found.to(dtype).contiguous()
        dist.broadcast(shared, group=self.stage_group, group_src=self.stages - 1)
        return shared

    def gather_stages(self, mine: Any) -> list[Any]:
        """One small picklable thing of each stage, in their order, on all of them."""
        return self._gather(mine, self.stages, self.stage_group)

    def gather_replicas(self, mine: Any) -> list[Any]:
        """One small picklable thing of each replica, in their order, on all of them."""
        return self._gather(mine, self.replicas, self.replica_group)

    def _gather(self, mine: Any, size: int, group: Any) -> list[Any]:
        if size == 1:
            return [mine]
        found: list[Any] = [None] * size
        with self.pulse.waiting("gather"):
            dist.all_gather_object(found, mine, group=group)
        return found

"""Expert loads of a step's microbatches so far, over all replicas: what a balance loss of the global batch counts with.

Shapes: L layers of the whole model, E experts.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from megatron_yuan.config.schema import ModelConfig
from megatron_yuan.parallel.topology import Topology


class LoadTally:
    """One for each step; only layers that are here are ever asked for."""

    def __init__(self, model: ModelConfig, topology: Topology) -> None:
        self.topology = topology
        self.load_LE = torch.zeros(model.num_layers, model.num_experts, dtype=torch.float64, device=topology.device)

    def of_microbatch(self) -> Callable[[int, Tensor], Tensor]:
        """A function of (layer, load [E]) for the next microbatch, which adds the load up and returns the sum so far.

        A layer's load is added once: recomputed in backward, when later microbatches have been counted too, it gets
        the answer that it got first. All replicas ask in the same order, as the schedule goes.
        """
        answers: dict[int, Tensor] = {}

        def tally(layer: int, load_E: Tensor) -> Tensor:
            if layer not in answers:
                self.load_LE[layer] += self.topology.sum_over_replicas(load_E.double())
                answers[layer] = self.load_LE[layer].clone()
            return answers[layer]

        return tally

"""Seconds of the pieces of a training step on this process: a layer, embedding, head; gradients and optimizer.

Shapes: B batch, S sequence, H hidden, L layers, X what is counted of a layer's routing.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor

from megatron_yuan.config.fields import with_values
from megatron_yuan.config.schema import Config
from megatron_yuan.data.batch import Batch, make_batch
from megatron_yuan.mcore.parallel import DistributedDataParallel
from megatron_yuan.model.model import YuanModel
from megatron_yuan.parallel.chunk import PipelineChunk, schedule_config, wrap_chunks
from megatron_yuan.parallel.topology import Topology
from megatron_yuan.planning.costs import PassSeconds
from megatron_yuan.training.optimizer import MixedPrecisionAdamW
from megatron_yuan.training.setup import build_part
from megatron_yuan.training.step import forward_step_of

Pieces = dict[str, float]
PARTS = {"first": (True, False), "middle": (False, False), "last": (False, True)}


def layer_of(pieces: Pieces) -> PassSeconds:
    """A layer's passes."""
    return PassSeconds(pieces["middle forward"], pieces["middle backward"])


def edge_of(pieces: Pieces, part: str) -> PassSeconds:
    """What the embedding (`first`) or the head (`last`) takes besides its layer."""
    layer = layer_of(pieces)
    return PassSeconds(
        max(0.0, pieces[f"{part} forward"] - layer.forward), max(0.0, pieces[f"{part} backward"] - layer.backward)
    )


class PieceTimes:
    """Times a layer alone, one behind the embedding, and one before the head, each within DDP.

    So adding to the float32 sums of gradients counts. One microbatch of random tokens; replicas do not meet.
    """

    def __init__(self, config: Config, topology: Topology) -> None:
        alone: dict[str, object] = {"pipeline_model_parallel_layout": None, "num_layers": 3}
        if config.parallel.recompute_granularity == "full":  # of some layers perhaps: another forward pass of theirs
            alone |= {"recompute_granularity": "none", "recompute_num_layers": None}
        config = self.config = with_values(config, alone)
        # Of a pipeline of one stage and one replica: nobody is waited for.
        self.topology = topology = replace(topology, pp_rank=0, pp_size=1, vp_size=1, dp_rank=0, dp_size=1)
        B, S = config.training.micro_batch_size, config.data.seq_length
        random = torch.Generator().manual_seed(1 + topology.rank)
        tokens = torch.randint(config.model.vocab_size, (B, S + 1), generator=random)
        self.batch: Batch = make_batch(tokens, range(B), eod_id=-1)
        device = topology.device
        dtype = torch.bfloat16 if config.optimizer.bf16 else torch.float32
        self.message = torch.randn(B, S, config.model.hidden_size, generator=random).to(device, dtype)
        self.chunks = {name: self._chunk(*edges) for name, edges in PARTS.items()}
        parameters = dict(cast(YuanModel, self.chunks["middle"].module.part).named_parameters())
        trained = {name: parameter for name, parameter in parameters.items() if parameter.requires_grad}
        self.optimizer = MixedPrecisionAdamW(trained, (), config.optimizer)
        self.count = sum(parameter.numel() for parameter in trained.values())

    def _chunk(self, is_first: bool, is_last: bool) -> DistributedDataParallel:
        part = build_part(self.config, self.topology.device, [1], is_first, is_last)
        chunk = PipelineChunk(part, None, schedule_config(self.config, self.topology), 0)
        return wrap_chunks([chunk], self.config, self.topology)[0]

    def pieces(self, rounds: int) -> Pieces:
        """Mean seconds of each; of gradients and optimizer, a parameter.

        Not the median: a step is a sum of many passes, and slow ones count in it.
        """
        found: dict[str, list[float]] = {}
        for _ in range(rounds):
            for name, chunk in self.chunks.items():
                forward, backward = self._pass(chunk, *PARTS[name])
                found.setdefault(f"{name} forward", []).append(forward)
                found.setdefault(f"{name} backward", []).append(backward)
            rest: dict[str, Callable[[], object]] = {
                "zero": self.chunks["middle"].zero_grad_buffer,
                "norm": lambda: self.optimizer.gradient_norm(self.topology, 1),
                "optimizer": lambda: self.optimizer.step(1e-5, 1.0, 1),
            }
            for name, action in rest.items():
                found.setdefault(name, []).append(seconds_of(action, self.topology.device) / self.count)
        return {name: statistics.fmean(seconds) for name, seconds in found.items()}

    def _pass(self, chunk: DistributedDataParallel, is_first: bool, is_last: bool) -> tuple[float, float]:
        chunk.module.received = None if is_first else self.message.detach().requires_grad_()  # type: ignore[assignment]
        shape = (3, self.config.model.num_experts**2 + 2)
        routing_LX = torch.zeros(shape, dtype=torch.float64, device=self.topology.device)
        step = forward_step_of(self.config, self.topology, 1, routing_LX, 1)
        begin = _now(self.topology.device)
        output, loss = step(iter([self.batch]), chunk)
        gradient: Tensor | None = self.message
        if is_last:
            output, gradient = loss(output)[0], None
        middle = _now(self.topology.device)
        torch.autograd.backward(output, gradient)
        end = _now(self.topology.device)
        return middle - begin, end - middle


def seconds_of(action: Callable[[], object], device: torch.device) -> float:
    """Of `action`, its work on `device` included."""
    begin = _now(device)
    action()
    return _now(device) - begin


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()

"""Training speed of one process on made-up tokens: ours, and a peer's in turn with it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from megatron_yuan.benchmark.parts import PartTimer
from megatron_yuan.config.schema import Config
from megatron_yuan.data.batch import Batch, make_batch
from megatron_yuan.parallel import topology as processes
from megatron_yuan.parallel.topology import Topology
from megatron_yuan.training.setup import TrainingModel, build_training_model
from megatron_yuan.training.step import run_batch


@dataclass
class OurStep:
    """One process that trains `config` on one microbatch of random tokens, again and again."""

    config: Config
    topology: Topology
    model: TrainingModel
    batch: Batch

    @property
    def tokens(self) -> int:
        """Tokens in a step."""
        return self.batch.tokens.numel()

    def forward_backward(self) -> None:
        """Everything but the optimizer."""
        for chunk in self.model.chunks:
            chunk.zero_grad_buffer()
        run_batch(self.model.chunks, iter([self.batch]), 1, self.config, self.topology, 1)

    def optimizer_step(self) -> None:
        """Norm, clipping, AdamW and the weights' refresh."""
        optimizer = self.model.optimizer
        norm = optimizer.gradient_norm(self.topology, self.tokens)
        optimizer.step(self.config.optimizer.lr, norm, self.tokens)

    def step(self) -> None:
        """A whole step."""
        self.forward_backward()
        self.optimizer_step()


@contextmanager
def our_step(config: Config) -> Iterator[OurStep]:
    """Build `config` in this process, one stage and one replica."""
    config = _alone(config)
    topology = processes.start(config)
    try:
        yield _build(config, topology)
    finally:
        processes.stop()


def steps_in_turn(configs: Mapping[str, Config], rounds: int) -> dict[str, float]:
    """Median seconds of a training step of one microbatch of each config, all in this process, in turn."""
    alone = {name: _alone(config) for name, config in configs.items()}
    topology = processes.start(next(iter(alone.values())))
    try:
        actions = {name: _build(config, topology).step for name, config in alone.items()}
        return timed_in_turn(actions, rounds, topology.device)
    finally:
        processes.stop()


def _alone(config: Config) -> Config:
    parallel = replace(config.parallel, pipeline_model_parallel_size=1, virtual_pipeline_model_parallel_size=1)
    training = replace(config.training, global_batch_size=config.training.micro_batch_size)
    return replace(config, parallel=parallel, training=training)


def _build(config: Config, topology: Topology) -> OurStep:
    random = torch.Generator().manual_seed(config.training.seed)
    size = (config.training.micro_batch_size, config.data.seq_length + 1)
    tokens = torch.randint(config.model.vocab_size, size, generator=random)
    batch = make_batch(tokens, range(size[0]), eod_id=-1)
    return OurStep(config, topology, build_training_model(config, topology), batch.to(topology.device))


def timed_in_turn(actions: dict[str, Callable[[], None]], rounds: int, device: torch.device) -> dict[str, float]:
    """Median seconds of each action, run one after another in each round, so that a slow spell hits all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for action in actions.values():
        action()
    for _ in range(rounds):
        for name, action in actions.items():
            seconds[name].append(_seconds(action, device))
    return {name: statistics.median(values) for name, values in seconds.items()}


def shares(ours: OurStep, rounds: int) -> dict[str, float]:
    """Share of a step's time by part: router, dispatch, experts, attention, filter, optimizer, head and the rest."""
    timer = PartTimer(ours.topology.device)
    with timer.watch(chunk.module for chunk in ours.model.chunks):
        total = sum(_seconds(ours.forward_backward, ours.topology.device) for _ in range(rounds))
    optimizer = sum(_seconds(ours.optimizer_step, ours.topology.device) for _ in range(rounds))
    own = timer.own_seconds() | {"optimizer": optimizer}
    own["head, norms, embedding, gradient sums"] = total + optimizer - sum(own.values())
    return {name: seconds / (total + optimizer) for name, seconds in own.items()}


def _seconds(action: Callable[[], None], device: torch.device) -> float:
    started = time.perf_counter()
    action()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started

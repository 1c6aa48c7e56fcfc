"""The processes of a tool that torchrun starts: their places, and the way out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from megatron_yuan.config.fields import with_values
from megatron_yuan.config.schema import Config
from megatron_yuan.errors import ConfigError
from megatron_yuan.parallel.host_memory import keep_freed_memory
from megatron_yuan.parallel.launcher import world_size
from megatron_yuan.parallel.topology import Topology, start, stop


@contextmanager
def joined(stages: int = 1, device: str = "auto") -> Iterator[Topology | None]:
    """The place of this process among `stages` pipeline stages x replicas; None for a process alone.

    Raises ConfigError where the processes that there are do not divide into pipelines.
    """
    world = world_size()
    if stages < 1 or world % stages:
        raise ConfigError(
            f"pipeline-model-parallel-size is {stages}, but there are {world} processes, which must be a multiple of "
            "it.\nFix: torchrun --nproc-per-node with a multiple of the stages."
        )
    if world == 1:
        if device == "cpu" or not torch.cuda.is_available():
            keep_freed_memory()
        yield None
        return
    try:
        yield start(with_values(Config(), {"pipeline_model_parallel_size": stages, "device": device.split(":")[0]}))
    finally:
        stop()

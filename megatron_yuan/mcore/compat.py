"""Each touch of megatron-core that is private, noisy or tied to a version: one named function, what it does and why."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist


@contextmanager
def quiet() -> Iterator[None]:
    """Hide megatron-core's import-time remarks on packages this project never needs (Transformer Engine, apex).

    Upstream: module level of core/optimizer, core/distributed/fsdp and others in 0.16. Nothing else is hidden:
    errors raise.
    """
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


@contextmanager
def importing() -> Iterator[None]:
    """Import megatron-core quietly, and without torch's compiler: a third of the time that a process takes to start.

    Upstream: core/jit.py decorates the fused functions of GPTModel, none of which is called here, with `torch.compile`,
    which loads dynamo and inductor whether or not anything is compiled.
    """
    compiler = torch.compile
    torch.compile = lambda function: function  # type: ignore[assignment]
    try:
        with quiet():
            yield
    finally:
        torch.compile = compiler


@contextmanager
def world_of_one() -> Iterator[None]:
    """Give megatron-core a rank to ask for where this process belongs to no group; else do nothing.

    Upstream: `BlendedDataset._build_indices` in core/datasets/blended_dataset.py calls `torch.distributed.get_rank()`
    unasked. Tested in tests/contract/test_dataset_builder.py.
    """
    if dist.is_initialized():
        yield
        return
    in_memory = dist.HashStore()  # type: ignore[attr-defined]  # no port, no peers
    dist.init_process_group("gloo", store=in_memory, rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()

"""megatron-core's pipeline schedules behind one call: plain, 1F1B or interleaved 1F1B, as the topology says."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor

from megatron_yuan.mcore.parallel import DistributedDataParallel, get_forward_backward_func

ForwardStep = Callable[[Iterator[Any], DistributedDataParallel], tuple[Tensor, Callable[..., Any]]]
"""(microbatches, chunk) -> (what the chunk computes, how the last stage makes (loss sum, tokens, report) of it)."""


def run_microbatches(
    chunks: Sequence[DistributedDataParallel],
    microbatches: Iterator[Any],
    forward_step: ForwardStep,
    num_microbatches: int,
    microbatch_shape: tuple[int, int],
    forward_only: bool = False,
) -> list[Any]:
    """Send `num_microbatches` through the pipeline, and back unless `forward_only`; afterwards gradients are final.

    Every chunk reads the same `microbatches`. What travels between stages is [*microbatch_shape, hidden]. Returns
    the reports of the last stage, one a microbatch; an empty list elsewhere.
    """
    iterators = list(itertools.tee(microbatches, len(chunks)))
    first, second = microbatch_shape
    return get_forward_backward_func()(
        forward_step_func=forward_step,
        data_iterator=iterators if len(chunks) > 1 else iterators[0],
        model=list(chunks),
        num_microbatches=num_microbatches,
        # megatron names the first two sizes of what travels; ours are [B, S, H], and it never looks inside.
        seq_length=first,
        micro_batch_size=second,
        forward_only=forward_only,
    )

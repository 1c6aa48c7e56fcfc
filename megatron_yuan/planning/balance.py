"""The split of layers over stages that evens their times, embedding and head counted."""

from __future__ import annotations

from collections.abc import Sequence

from megatron_yuan.planning.costs import Costs


def balanced_sizes(num_layers: int, stages: int, virtual: int, costs: Costs) -> list[int]:
    """Layers of each of the stages x virtual chunks, in a token's order, such that the slowest stage is fastest.

    All layers cost the same, so giving each to the stage that is then the least loaded is best. There are as many
    layers as chunks at least, and each chunk gets one.
    """
    layer = costs.layer.forward + costs.layer.backward
    sizes = [1] * (stages * virtual)
    loads = [virtual * layer] * stages
    loads[0] += costs.embedding.forward + costs.embedding.backward
    loads[-1] += costs.head.forward + costs.head.backward
    # Of stages that would be equal the middle ones first: the first keeps most microbatches, the last the logits.
    middle = (stages - 1) / 2
    for _ in range(num_layers - len(sizes)):
        stage = min(range(stages), key=lambda s: (round(loads[s] / layer, 6), abs(s - middle)))
        loads[stage] += layer
        runs = range(stage, len(sizes), stages)
        sizes[min(runs, key=lambda run: (sizes[run], _weight(run, sizes)))] += 1
    return sizes


def _weight(run: int, sizes: Sequence[int]) -> int:
    return run in (0, len(sizes) - 1)


def stage_seconds(sizes: Sequence[int], stages: int, costs: Costs) -> list[float]:
    """Forward and backward seconds of a microbatch on each stage, from the layers of each chunk."""
    layer = costs.layer.forward + costs.layer.backward
    seconds = [layer * sum(sizes[stage::stages]) for stage in range(stages)]
    seconds[0] += costs.embedding.forward + costs.embedding.backward
    seconds[-1] += costs.head.forward + costs.head.backward
    return seconds


def slowest_share(seconds: Sequence[float]) -> float:
    """The slowest stage's share of all stages' time."""
    return max(seconds) / sum(seconds)

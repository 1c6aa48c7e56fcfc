"""Whether replicas still hold the same bits: a checksum of every tensor, compared over the data-parallel group.

Without sharding every replica holds the whole stage, and the same gradients should keep it the same for ever. A bit
that flips on one device, or a sum that came out otherwise there, is found here before it spreads into a checkpoint.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor

from megatron_yuan.errors import ReplicaError
from megatron_yuan.parallel.topology import Topology

_CHUNK = 1 << 22  # elements that are int64 at a time
_FACTOR = 0x9E3779B97F4A7C15 - (1 << 64)  # odd, so that it can be undone modulo 2^64
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def checksum(tensor: Tensor) -> Tensor:
    """A number of 64 bits, on the tensor's device, that differs whenever any single element does.

    sum over i of (element i's bits) x (an odd number made of i), modulo 2^64: no difference times an odd number is 0.
    """
    bits = tensor.detach().contiguous().view(-1).view(_BITS[tensor.element_size()])
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    for begin in range(0, bits.numel(), _CHUNK):
        chunk = bits[begin : begin + _CHUNK].long()
        place = torch.arange(begin, begin + chunk.numel(), device=tensor.device)
        total += (chunk * ((2 * place + 1) * _FACTOR)).sum()
    return total


def check_replicas(tensors: Mapping[str, Tensor], topology: Topology) -> None:
    """Compare `tensors`, by global name, with those of the other replicas; called by all ranks together.

    ReplicaError on every rank where any differ, naming the first of them in the model and the ranks in the minority.
    """
    if topology.dp_size == 1:
        return
    names = sorted(tensors)
    mine = torch.stack([checksum(tensors[name]) for name in names]).tolist() if names else []
    held = topology.gather((topology.pp_rank, dict(zip(names, mine, strict=True))))
    by_stage: dict[int, dict[int, dict[str, int]]] = {}
    for rank, (stage, sums) in enumerate(held):
        by_stage.setdefault(stage, {})[rank] = sums
    different: dict[str, set[int]] = {}
    undecided = False
    for ranks in by_stage.values():
        for name in next(iter(ranks.values())):
            counts = Counter(sums[name] for sums in ranks.values())
            if len(counts) > 1:
                (most, many), (_, next_many) = counts.most_common(2)
                undecided = undecided or many == next_many
                odd = ranks if many == next_many else (rank for rank, sums in ranks.items() if sums[name] != most)
                different.setdefault(name, set()).update(odd)
    if different:
        first = min(different, key=_place)
        ranks = ", ".join(map(str, sorted(different[first])))
        who = f"of ranks {ranks} any may be wrong" if undecided else f"rank {ranks} is unlike the others of its stage"
        raise ReplicaError(
            f"replicas differ in {len(different)} tensors, the first is {first}: {who}.\n"
            "Nothing was saved since they last agreed; look at the devices."
        )


def _place(name: str) -> tuple[int, int, str]:
    """Embedding, then layers by their numbers, then the rest."""
    first, _, rest = name.partition(".")
    number = rest.partition(".")[0]
    return (0 if first == "embedding" else 1 if first == "layers" else 2), int(number) if number.isdigit() else 0, name

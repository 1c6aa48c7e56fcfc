"""How fast neighbours reach each other: the links that a pipeline and its replicas use, measured before they matter."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from megatron_yuan.parallel.topology import Topology

SMALL_TURNS, LARGE_TURNS = 20, 3
LARGE_BYTES = 4 << 20


class Link(NamedTuple):
    """From one rank to the next of its pipeline or of its stage's replicas."""

    kind: str
    """"stages" or "replicas"."""
    source: int
    target: int
    seconds: float
    """One way of a few bytes: half of the way there and back."""
    bytes_per_second: float


def measure_links(topology: Topology) -> list[Link]:
    """Every rank's links, on every rank, in order of ranks. Called by all ranks together; takes well under a second.

    Neighbours are measured at the same time, every other pair first, as they work at the same time in training.
    """
    groups = (("stages", topology.pp_group, topology.pp_size), ("replicas", topology.dp_group, topology.dp_size))
    mine = [
        link
        for kind, group, size in groups
        for parity in (0, 1)
        for link in ([] if size == 1 else _pairs(topology, kind, group, parity))
    ]
    return [link for links in topology.gather(mine) for link in links]


def _pairs(topology: Topology, kind: str, group: Any, parity: int) -> list[Link]:
    members = dist.get_process_group_ranks(group)
    place = members.index(topology.rank)
    dist.barrier(group)
    if place % 2 == parity and place + 1 < len(members):
        other = members[place + 1]
        seconds, whole = _measured(topology, group, other, first=True)
        return [Link(kind, topology.rank, other, seconds, LARGE_BYTES / max(whole - seconds, 1e-9))]
    if place % 2 != parity and place > 0:
        _measured(topology, group, members[place - 1], first=False)
    return []


def _measured(topology: Topology, group: Any, other: int, first: bool) -> tuple[float, float]:
    """Seconds one way of a byte, and of LARGE_BYTES."""
    found = []
    for nbytes, turns in ((1, SMALL_TURNS), (LARGE_BYTES, LARGE_TURNS)):
        tensor = torch.zeros(nbytes, dtype=torch.uint8, device=topology.device)
        times = []
        for _ in range(turns + 1):  # the first makes the connection
            begun = time.perf_counter()
            for sends in (first, not first):
                if sends:
                    dist.send(tensor, other, group)
                else:
                    dist.recv(tensor, other, group)
            if topology.device.type == "cuda":
                torch.cuda.synchronize(topology.device)
            times.append((time.perf_counter() - begun) / 2)
        found.append(statistics.median(times[1:]))
    return found[0], found[1]


def in_words(links: Sequence[Link]) -> list[str]:
    """For each kind the usual link and the worst one."""
    told = []
    for kind in ("stages", "replicas"):
        alike = [link for link in links if link.kind == kind]
        if not alike:
            continue
        slow, late = min(alike, key=lambda link: link.bytes_per_second), max(alike, key=lambda link: link.seconds)
        rate = statistics.median(link.bytes_per_second for link in alike) / 1e9
        delay = statistics.median(link.seconds for link in alike) * 1e6
        told.append(
            f"links between {kind}: {rate:.2f} GB/s, {delay:.0f} us; slowest {slow.bytes_per_second / 1e9:.2f} GB/s "
            f"(rank {slow.source} to {slow.target}), latest {late.seconds * 1e6:.0f} us "
            f"(rank {late.source} to {late.target})"
        )
    return told

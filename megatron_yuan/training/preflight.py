"""Before the model is built: does every rank see the same data, have room to save, and reach its neighbours?

Versions and settings are compared earlier still (`parallel/alike.py`). What differs stops the run in words; the rest is
one table, a row a host.
"""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from megatron_yuan.config.schema import Config
from megatron_yuan.data.datasets import Sources
from megatron_yuan.errors import ParallelError
from megatron_yuan.log import logger
from megatron_yuan.parallel.alike import by_value
from megatron_yuan.parallel.links import in_words, measure_links
from megatron_yuan.parallel.topology import Topology
from megatron_yuan.planning.accounting import count_parameters
from megatron_yuan.planning.memory import element_bytes, optimizer_bytes

CLOCK_SECONDS = 2.0
"""Hosts whose clocks are so far apart are warned of: times of files and logs then mislead."""


@dataclass(frozen=True)
class Seen:
    """What one rank finds."""

    host: str
    data: dict[str, str]
    """What each set is, by its prefix."""
    free: int | None
    """Bytes on the disk of --save."""
    clock: float
    """Seconds since 1970, at about the same moment on all ranks."""
    device: str
    nccl: dict[str, str]


def preflight(config: Config, topology: Topology, sources: Sources) -> None:
    """Compare and measure; says what it found on the main rank. ParallelError, on all ranks, where data differ."""
    if topology.is_main and (short := short_of_space(config, _free(config.checkpoint.save))):
        logger.info(short)
    if topology.world_size == 1:
        return
    topology.barrier()
    mine = Seen(
        socket.gethostname(),
        {source.prefix: _known_by(source.prefix, sources) for source in sources.distinct},
        _free(config.checkpoint.save),
        time.time(),
        torch.cuda.get_device_name(topology.device) if topology.device.type == "cuda" else "CPU",
        {name: value for name, value in sorted(os.environ.items()) if name.startswith("NCCL_")},
    )
    seen = topology.gather(mine)
    _check_data(seen)
    links = measure_links(topology)
    if topology.is_main:
        for line in [*table(seen), *in_words(links)]:
            logger.info(line)


def short_of_space(config: Config, free: int | None) -> str | None:
    """A warning where a checkpoint does not fit into the `free` bytes of the disk of --save."""
    needed = count_parameters(config.model).total * (element_bytes(config) + optimizer_bytes(config))
    if free is None or free >= needed:
        return None
    return (
        f"warning: a checkpoint needs {needed / 1e9:.3g} GB, but the disk of --save {config.checkpoint.save} has "
        f"{free / 1e9:.3g} GB free: free space before the first save, or name a folder on another disk"
    )


def _check_data(seen: Sequence[Seen]) -> None:
    hosts = [each.host for each in seen]
    for prefix in seen[0].data:
        ranks: dict[str, list[int]] = defaultdict(list)
        for rank, each in enumerate(seen):
            ranks[each.data.get(prefix, "missing")].append(rank)
        if len(ranks) > 1:
            raise ParallelError(
                f"data {prefix} is not the same on all ranks: {by_value(ranks, hosts)}.\n"
                "Fix: the same files on every host, or a folder that all share."
            )


def table(seen: Sequence[Seen]) -> list[str]:
    """A row a host, and warnings."""
    hosts: dict[str, list[int]] = defaultdict(list)
    for rank, each in enumerate(seen):
        hosts[each.host].append(rank)
    width = max(len("host"), *map(len, hosts))
    lines = [f"preflight: {'host':<{width}}  ranks        device                clock s   free GB"]
    for host, ranks in hosts.items():
        first = seen[ranks[0]]
        span = str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]}-{ranks[-1]}"
        ahead = first.clock - seen[0].clock
        free = "-" if first.free is None else f"{first.free / 1e9:.1f}"
        lines.append(f"           {host:<{width}}  {span:<11}  {first.device[:20]:<20}  {ahead:>+7.3f}  {free:>8}")
        if abs(ahead) > CLOCK_SECONDS:
            lines.append(
                f"warning: the clock of {host} is {ahead:+.1f} s beside rank 0's: times of files and logs mislead"
            )
    settings: dict[str, list[int]] = defaultdict(list)
    for rank, each in enumerate(seen):
        settings[" ".join(f"{name}={value}" for name, value in each.nccl.items()) or "none set"].append(rank)
    if len(settings) > 1:
        lines.append(f"warning: NCCL's variables differ: {by_value(settings, [each.host for each in seen])}")
    elif "none set" not in settings:
        lines.append(f"NCCL: {next(iter(settings))}")
    return lines


def _known_by(prefix: str, sources: Sources) -> str:
    passport = sources.passports.get(prefix)
    if passport is not None:
        return f"passport of {passport.tokens:,} tokens, sha256 {passport.bin_sha256[:12]}"
    sizes = [Path(f"{prefix}{ending}").stat().st_size for ending in (".bin", ".idx")]
    return f"no passport, {sizes[0]:,} and {sizes[1]:,} bytes"


def _free(save: str | None) -> int | None:
    if save is None:
        return None
    folder = Path(save)
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free

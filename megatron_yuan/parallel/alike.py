"""What must be the same on every rank before they do anything together: versions and settings.

Ranks that differ in these would wait for each other in collectives that never match, or train what nobody asked for.
"""

from __future__ import annotations

import hashlib
import platform
from collections import defaultdict
from collections.abc import Mapping, Sequence
from importlib import metadata

import torch
import torch.distributed as dist

from megatron_yuan.config.fields import as_flag, settings, value_of
from megatron_yuan.config.schema import Config
from megatron_yuan.errors import ParallelError
from megatron_yuan.parallel.watch.identity import Identity
from megatron_yuan.version import __version__

PACKAGES = ("megatron-core", "numpy", "safetensors", "sentencepiece")


def check_alike(config: Config) -> None:
    """ParallelError on every rank, naming what differs and where. Called by all ranks together, first of all."""
    if dist.get_world_size() == 1:
        return
    mine = {**versions(), **{name: repr(value_of(config, name)) for name in settings()}}
    hosts = gathered(Identity.here().host)
    if len(set(gathered(hash_of(mine)))) == 1:
        return
    problem = first_difference(gathered(mine), hosts)
    assert problem is not None
    raise ParallelError(problem)


def versions() -> dict[str, str]:
    """Of all that a rank computes with."""
    found = {"megatron_yuan": __version__, "python": platform.python_version(), "torch": torch.__version__}
    found["cuda"] = str(torch.version.cuda)
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def first_difference(by_rank: Sequence[Mapping[str, str]], hosts: Sequence[str]) -> str | None:
    """In words, with the fix; None where all are the same."""
    for name in by_rank[0]:
        ranks: dict[str, list[int]] = defaultdict(list)
        for rank, values in enumerate(by_rank):
            ranks[values.get(name, "missing")].append(rank)
        if len(ranks) > 1:
            what = as_flag(name)[2:] if name in settings() else f"the version of {name}"
            fix = "start all with the same flags and files" if name in settings() else "one environment on all hosts"
            return f"ranks differ in {what}: {by_value(ranks, hosts)}.\nFix: {fix}."
    return None


def by_value(ranks: Mapping[str, Sequence[int]], hosts: Sequence[str]) -> str:
    """Each value with the ranks that have it."""
    told = []
    for value, members in list(ranks.items())[:4]:
        some = ", ".join(map(str, members[:4])) + (f" and {len(members) - 4} more" if len(members) > 4 else "")
        told.append(f"{value[:100]} on rank{'s' if len(members) > 1 else ''} {some} (host {hosts[members[0]]})")
    return "; ".join(told)


def gathered(value: object) -> list:
    """Each rank's, before there is a topology."""
    values: list = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def hash_of(values: Mapping[str, str]) -> str:
    """The same for the same values in every process."""
    return hashlib.sha256(repr(sorted(values.items())).encode()).hexdigest()

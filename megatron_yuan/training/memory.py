"""How much memory this process has needed."""

from __future__ import annotations

import resource
from pathlib import Path

import torch


def peak_memory_bytes(device: torch.device) -> int:
    """The most so far, in bytes: of torch's allocator on a GPU, resident in the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def held_bytes(device: torch.device) -> tuple[float, float]:
    """What this process holds, and the most that it can.

    On a CPU all of its address space where that has a limit (`ulimit -v`), or else what is resident, of which it can
    have no more.
    """
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return torch.cuda.memory_allocated(device), min(free + torch.cuda.memory_reserved(device), total)
    pages = Path("/proc/self/statm")
    if not pages.exists():  # not Linux
        peak = float(peak_memory_bytes(device))
        return peak, peak
    virtual, resident = (int(n) * float(resource.getpagesize()) for n in pages.read_text().split()[:2])
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return (resident, resident) if limit == resource.RLIM_INFINITY else (virtual, float(limit))

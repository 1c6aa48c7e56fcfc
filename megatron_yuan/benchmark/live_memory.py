"""The peak of live tensors of this process, whatever made them: every allocation and release of torch's CPU allocator.

torch.profiler records both. What was made before is not seen, so it begins before the model is built.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch.profiler import ProfilerActivity, profile


@dataclass
class LiveMemory:
    """Bytes, once `live_memory` has ended."""

    peak: int = 0
    left: int = 0
    """Live at the end."""


@contextmanager
def live_memory() -> Iterator[LiveMemory]:
    """Count while this lasts, on a CPU; a few times as slow as without."""
    found = LiveMemory()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        yield found
    results: Any = profiler.profiler
    events = results.kineto_results.events()
    for _, size in sorted((each.start_ns(), each.nbytes()) for each in events if each.name() == "[memory]"):
        found.left += size
        found.peak = max(found.peak, found.left)

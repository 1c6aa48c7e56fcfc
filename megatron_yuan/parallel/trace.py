"""What each rank did when: its pulse's beats with times, all ranks on one axis.

A beat costs a stamp and no more. On a GPU, where the training thread runs ahead of the device, the stamp is an event
on the device's own stream, so that a phase is as long as its kernels take.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from megatron_yuan.parallel.topology import Topology
from megatron_yuan.parallel.watch.identity import Identity
from megatron_yuan.parallel.watch.pulse import Position

_MEETINGS = 7


class Span(NamedTuple):
    """A phase of one rank."""

    begin: float
    """Seconds on rank 0's clock."""
    seconds: float
    step: int
    phase: str
    microbatch: int | None
    """Counted from 1."""
    waits: bool
    """For other ranks."""
    chunk: int | None = None
    """Of the stage's part of the model, counted from 1; None where it has one."""


class Recorder:
    """Listens to a pulse from its making until `spans`."""

    def __init__(self, topology: Topology) -> None:
        """Called by all ranks together."""
        self._pulse, self._device = topology.pulse, topology.device
        self._ahead = clock_ahead(topology)
        self._beats: list[tuple[Position, float, Any]] = []
        self._pulse.listeners.append(self._hear)

    def _hear(self, position: Position) -> None:
        self._beats.append((position, time.perf_counter(), self._mark()))

    def _mark(self) -> Any:
        if self._device.type != "cuda":
            return None
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def spans(self) -> list[Span]:
        """Stop listening; each phase lasts until the next one begins."""
        self._pulse.listeners.remove(self._hear)
        self._hear(self._pulse.position)
        times = self._times()
        found = []
        for (position, *_), begin, end in zip(self._beats, times, times[1:], strict=False):
            step, phase, microbatch, waits, chunk = position
            if step is not None and end > begin:
                found.append(Span(begin - self._ahead, end - begin, step, phase, microbatch, waits, chunk))
        return found

    def _times(self) -> list[float]:
        _, first, event = self._beats[0]
        if event is None:
            return [at for _, at, _ in self._beats]
        torch.cuda.synchronize(self._device)
        return [first + event.elapsed_time(other) / 1e3 for _, _, other in self._beats]


def clock_ahead(topology: Topology, clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds that this rank's clock is ahead of rank 0's. Called by all ranks together.

    Ranks leave a barrier at nearly the same moment: the median over several is right to a fraction of a millisecond.
    Processes of one host share a clock, which is exact.
    """
    if topology.world_size == 1:
        return 0.0
    times = []
    for _ in range(_MEETINGS):
        topology.barrier()
        times.append(clock())
    here = Identity.here()
    by_rank = topology.gather((here.place[0] or here.host, times))
    (first_host, first), (host, _) = by_rank[0], by_rank[topology.rank]
    if host == first_host:
        return 0.0
    return statistics.median(ours - theirs for ours, theirs in zip(times, first, strict=True))

"""How long it took from the launch of this process to the end of its first step, part by part."""

from __future__ import annotations

import os
import time
from pathlib import Path

from megatron_yuan.parallel.topology import Topology
from megatron_yuan.parallel.watch.pulse import Position

PARTS = ("preflight", "checks", "model", "load", "data")
"""Phases of the pulse before the first step."""


class StartUp:
    """Listens to the topology's pulse from its making, after imports and once processes have met, until `line`."""

    def __init__(self, topology: Topology) -> None:
        self._pulse = topology.pulse
        now = time.monotonic()
        met = now - topology.meeting_seconds
        self._marks = [
            ("imports and settings", min(met, now - process_age())),
            ("processes meet", met),
            ("preflight", now),
        ]
        self._pulse.listeners.append(self._hear)

    def _hear(self, position: Position) -> None:
        phase = position.phase.partition(" (")[0]
        part = phase if phase in PARTS else self._marks[-1][0]
        if position.step is not None:
            part = "validation" if phase.startswith("validation") else "first step"
        if part != self._marks[-1][0]:
            self._marks.append((part, time.monotonic()))

    def line(self) -> str:
        """In words, once the first step is done; it stops listening."""
        self._pulse.listeners.remove(self._hear)
        seconds: dict[str, float] = {}
        ends = [*(at for _, at in self._marks[1:]), time.monotonic()]
        for (part, begin), end in zip(self._marks, ends, strict=True):
            seconds[part] = seconds.get(part, 0.0) + end - begin
        told = ", ".join(f"{part} {each:.1f}" for part, each in seconds.items() if each >= 0.05)
        return f"start-up {sum(seconds.values()):.1f} s: {told}"


def process_age() -> float:
    """Seconds since this process began; 0 where the system does not say."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        uptime = float(Path("/proc/uptime").read_text().split()[0])
        return max(0.0, uptime - int(fields[19]) / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, IndexError):
        return 0.0

"""A rank of a pretended run, as a program: steps of two microbatches with a sum over all ranks, under the watch.

    python -m tests.distributed.watched FOLDER FAULT RANK LIVENESS_SECONDS HANG_SECONDS COLLECTIVES_SECONDS

In the second microbatch of step 3, rank RANK meets with FAULT. It has torch's gloo but no model, so that it starts
quickly.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from megatron_yuan.errors import ConfigError, run_command_line
from megatron_yuan.parallel.topology import Topology
from megatron_yuan.parallel.watch.start import connect
from megatron_yuan.parallel.watch.watch import Limits

FAULTS: dict[str, Callable[[], object]] = {
    "none": lambda: None,
    "sleep": lambda: time.sleep(1e4),
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "hold the interpreter": lambda: ctypes.PyDLL(None).sleep(10_000),
    "bug": lambda: 1 // 0,
    "mistake": lambda: _mistake(),
    "linger": lambda: time.sleep(1),
}


def _mistake() -> None:
    raise ConfigError("that cannot work")


def main() -> None:
    folder, fault, culprit, liveness, hang, patience = sys.argv[1:]
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=float(patience)))
    topology = Topology(rank, world_size, rank, 0, 1, 1, rank, world_size, torch.device("cpu"), None, dist.group.WORLD)
    watch = connect(topology, Limits(float(liveness), float(hang)), Path(folder))
    try:
        with watch, watch.explaining():
            train(topology, Path(folder), FAULTS[fault] if rank == int(culprit) else FAULTS["none"])
    finally:
        dist.destroy_process_group()


def train(topology: Topology, folder: Path, fault: Callable[[], object]) -> None:
    pulse = topology.pulse
    for step in (1, 2, 3, 4):
        pulse.enter_step(step)
        for microbatch in (1, 2):
            pulse.beat("forward", microbatch)
            time.sleep(0.1)
            if (step, microbatch) == (3, 2) and fault is not FAULTS["none"]:
                time.sleep(1.5)  # longer than from heartbeat to heartbeat
                fault()
        topology.sum_over_replicas(torch.ones(1))
        (folder / f"step_{step}").touch()


if __name__ == "__main__":
    run_command_line(main)

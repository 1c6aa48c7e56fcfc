"""Real processes for distributed tests: gloo on this machine, a free port, each ended by the test that started it."""

from __future__ import annotations

import os
import queue
import socket
import time
import traceback
from collections.abc import Callable
from typing import Any

import torch
import torch.multiprocessing as mp

TIMEOUT_SECONDS = 240
PRELOADED = ["megatron_yuan.training.start", "megatron_yuan.data.datasets", "torch._dynamo"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_processes(function: Callable[..., Any], world_size: int, *args: Any) -> list[Any]:
    """Call `function(*args)` in `world_size` processes with torchrun's variables set; returns their results by rank."""
    # Forked from one server that has loaded what takes long to load, and has done nothing else.
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    results = context.Queue()
    port = free_port()
    processes = [
        context.Process(target=_run, args=(rank, world_size, port, function, args, results), daemon=True)
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    try:
        collected: dict[int, Any] = {}
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while len(collected) < world_size:
            try:
                rank, result, failure = results.get(timeout=1)
            except queue.Empty:
                dead = [p.exitcode for p in processes if p.exitcode not in (None, 0)]
                assert not dead, f"processes ended with {dead} before they had a result"
                assert time.monotonic() < deadline, f"no result within {TIMEOUT_SECONDS} s"
                continue
            if failure:
                raise AssertionError(f"rank {rank} failed:\n{failure}")
            collected[rank] = result
        for process in processes:
            process.join(30)
        return [collected[rank] for rank in range(world_size)]
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
                process.join()


def _run(rank: int, world_size: int, port: int, function: Callable[..., Any], args: tuple, results: Any) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    torch.set_num_threads(1)
    try:
        results.put((rank, function(*args), None))
    except BaseException:
        results.put((rank, None, traceback.format_exc()))
        raise

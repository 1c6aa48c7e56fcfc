"""Gloo processes of a benchmark on this machine, one thread each."""

from __future__ import annotations

import os
import queue
import socket
import traceback
from collections.abc import Callable
from typing import Any

import torch
import torch.multiprocessing as mp

from megatron_yuan.errors import YuanError

WAIT_SECONDS = 1200


def run_processes(function: Callable[..., Any], count: int, *arguments: Any) -> list[Any]:
    """`function(*arguments)` in `count` processes that find each other as under torchrun; what they return, by rank."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = mp.get_context("spawn")
    results = context.Queue()
    processes = [
        context.Process(target=_enter, args=(rank, count, port, results, function, arguments), daemon=True)
        for rank in range(count)
    ]
    for process in processes:
        process.start()
    try:
        found: dict[int, Any] = {}
        while len(found) < count:
            rank, value, failure = results.get(timeout=WAIT_SECONDS)
            if failure is not None:
                raise YuanError(f"process {rank} of the benchmark failed:\n{failure}")
            found[rank] = value
        return [found[rank] for rank in range(count)]
    except queue.Empty:
        raise YuanError(f"a process of the benchmark gave no result within {WAIT_SECONDS} s.") from None
    finally:
        for process in processes:
            process.join(5)
            if process.is_alive():
                process.kill()


def _enter(
    rank: int, count: int, port: int, results: Any, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})
    torch.set_num_threads(1)
    try:
        results.put((rank, function(*arguments), None))
    except BaseException:
        results.put((rank, None, traceback.format_exc()))
        raise

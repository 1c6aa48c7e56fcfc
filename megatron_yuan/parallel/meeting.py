"""Where the processes of one attempt meet, apart from those of attempts before it.

torchrun keeps one key-value store through all its restarts, in which the addresses of processes long dead stay under
the keys that the new ones use: those would then wait for a connection that is refused (torch 2.13;
github.com/pytorch/pytorch/issues/135712). Its count of restarts tells attempts apart only as long as no node joins
anew. So rank 0 draws a name for the attempt and hands it to each rank that asks, and all keys are kept under that name.
"""

from __future__ import annotations

import os
import secrets
import time
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from megatron_yuan.errors import ParallelError

_FOLDER = "megatron_yuan/meeting"
_POLL_SECONDS = 0.02


def keeps_its_store() -> bool:
    """Whether a launcher holds a store that outlives this process."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def meet(rank: int, world_size: int, timeout: timedelta) -> Any:
    """The launcher's store, reduced to this attempt's keys. Raises ParallelError where others do not come in time."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(address, port, world_size, is_master=False, timeout=timeout)  # pyright: ignore[reportPrivateImportUsage]
    name = _receive(store, rank, world_size, timeout) if rank == 0 else _ask(store, rank, timeout)
    return dist.PrefixStore(f"{_FOLDER}/{name}", store)  # pyright: ignore[reportPrivateImportUsage]


def _receive(store: Any, rank: int, world_size: int, timeout: timedelta) -> str:
    """On rank 0: answer whoever asks, until every rank has thanked for the name. A question left by the dead is
    answered too; nobody reads that."""
    name, deadline = secrets.token_hex(8), time.monotonic() + timeout.total_seconds()
    absent, answered = set(range(1, world_size)), dict[int, bytes]()
    while absent:
        for other in sorted(absent):
            if store.check([f"{_FOLDER}/{name}/thanks/{other}"]):
                absent.discard(other)
            elif store.check([f"{_FOLDER}/question/{other}"]):
                question = store.get(f"{_FOLDER}/question/{other}")
                if answered.get(other) != question:
                    store.set(f"{_FOLDER}/answer/{question.decode()}", name)
                    answered[other] = question
        if absent and time.monotonic() >= deadline:
            raise ParallelError(
                f"rank {rank} has waited {timeout} for the ranks {sorted(absent)}, which have not come.\n"
                "Fix: see why they do not start, or raise --distributed-timeout-minutes."
            )
        time.sleep(_POLL_SECONDS if absent else 0)
    return name


def _ask(store: Any, rank: int, timeout: timedelta) -> str:
    question = secrets.token_hex(8)
    store.set(f"{_FOLDER}/question/{rank}", question)
    try:
        store.wait([f"{_FOLDER}/answer/{question}"], timeout)
    except dist.DistError as error:
        raise ParallelError(
            f"rank {rank} has waited {timeout} for rank 0, which has not come ({error}).\n"
            "Fix: see why it does not start, or raise --distributed-timeout-minutes."
        ) from None
    name = store.get(f"{_FOLDER}/answer/{question}").decode()
    store.set(f"{_FOLDER}/{name}/thanks/{rank}", "")
    return name

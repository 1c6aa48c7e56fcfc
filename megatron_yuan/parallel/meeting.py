"""Where the processes of one attempt meet, apart from those of attempts before it.

torchrun keeps one key-value store through all its restarts, in which the addresses of processes long dead stay under
the keys that the new ones use: those would then wait for a connection that is refused (torch 2.13;
github.com/pytorch/pytorch/issues/135712). Its count of restarts tells attempts apart only as long as no node joins
anew. So rank 0 draws a name for the attempt and hands it to each rank that asks, and all keys are kept under that name.
Where the launcher keeps no store (deepspeed, or none at all), rank 0 does, for as long as it lives.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from megatron_yuan.errors import ParallelError
from megatron_yuan.parallel.launcher import meeting_place

_FOLDER = "megatron_yuan/meeting"
_POLL_SECONDS = 0.02
_RETRY_SECONDS = 0.5


def keeps_its_store() -> bool:
    """Whether a launcher holds a store that outlives this process."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def meet(rank: int, world_size: int, timeout: timedelta) -> Any:
    """A store, reduced to this attempt's keys. Raises ParallelError where others do not come in time."""
    deadline = time.monotonic() + timeout.total_seconds()
    store = _store(rank, world_size, timeout)
    left = timedelta(seconds=max(1.0, deadline - time.monotonic()))
    name = _receive(store, rank, world_size, timeout) if rank == 0 else _ask(store, rank, left)
    return dist.PrefixStore(f"{_FOLDER}/{name}", store)  # pyright: ignore[reportPrivateImportUsage]


def _store(rank: int, world_size: int, timeout: timedelta) -> Any:
    host, port = meeting_place()
    serves = rank == 0 and not keeps_its_store()
    if not serves:
        _reach(host, port, rank, timeout)
    # Who serves listens at all addresses, and reaches itself at its own: a wrong name then costs no page of torch's.
    own = "127.0.0.1" if serves else host
    try:
        return dist.TCPStore(  # pyright: ignore[reportPrivateImportUsage]
            own, port, world_size, is_master=serves, timeout=timeout, wait_for_workers=False
        )
    except dist.DistError as error:
        reason = next(iter(str(error).splitlines()), "")
        fix = "another MASTER_PORT" if "EADDRINUSE" in str(error) else "MASTER_ADDR must be the host of rank 0"
        raise ParallelError(
            f"rank {rank} cannot meet the others at MASTER_ADDR {host}, MASTER_PORT {port} ({reason}).\nFix: {fix}."
        ) from None


def _reach(host: str, port: int, rank: int, timeout: timedelta) -> None:
    """Wait for whom torch would wait for longer than asked, with a page of remarks."""
    deadline = time.monotonic() + timeout.total_seconds()
    while True:
        try:
            socket.create_connection((host, port), timeout=max(1.0, deadline - time.monotonic())).close()
            return
        except OSError as error:
            if time.monotonic() >= deadline:
                raise ParallelError(
                    f"rank {rank} has waited {timeout} for rank 0 at MASTER_ADDR {host}, MASTER_PORT {port}: {error}.\n"
                    "Fix: start rank 0 there, see that this host reaches it, or raise --distributed-timeout-minutes."
                ) from None
        time.sleep(_RETRY_SECONDS)


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
                f"Fix: see why they do not start, that they reach MASTER_ADDR {os.environ.get('MASTER_ADDR')} and "
                "that it is the host of rank 0, or raise --distributed-timeout-minutes."
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

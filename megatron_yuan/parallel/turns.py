"""Work that leaves files behind: done by one process first, then by one of each machine that does not see its files,
and last by all, who find it done.

An error on one is an error on all, and nobody waits in one collective for longer than some seconds, however long the
work takes: whoever waits hears at intervals that it goes on.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from megatron_yuan.errors import DataError, YuanError
from megatron_yuan.parallel.topology import Topology

T = TypeVar("T")
LONGEST_SILENCE = 5.0  # seconds


def in_turns(topology: Topology, what: str, action: Callable[[], T]) -> T:
    """The result of `action` on this rank: on rank 0 first, then on the first rank of each machine, then on the others.

    Called by all ranks together. Raises `action`'s own error where it failed, and a DataError that tells it elsewhere.
    """
    if topology.world_size == 1:
        return action()
    turn = 0 if topology.is_main else 1 if topology.local_rank == 0 else 2
    work = _Work(action)
    for now in range(3):
        if now == turn:
            work.start()
        silence = 0.05
        while True:
            idle = now != turn or work.join(silence)
            silence = min(2 * silence, LONGEST_SILENCE)
            reports = topology.gather((idle, work.failure))
            topology.pulse.beat(what)
            failed = next((i for i, (_, failure) in enumerate(reports) if failure is not None), None)
            if failed is not None:
                if work.error is not None:
                    raise work.error
                raise DataError(f"{what} failed on rank {failed}: {reports[failed][1]}")
            if all(idle for idle, _ in reports):
                break
    return work.result


@dataclass
class _Work(Generic[T]):
    """`action` in a thread of its own, so that its process can speak meanwhile."""

    action: Callable[[], T]
    error: BaseException | None = None
    failure: str | None = None
    """The error in words that travel."""
    _result: T | None = None

    @property
    def result(self) -> T:
        """What `action` returned."""
        return self._result  # type: ignore[return-value]

    def start(self) -> None:
        """Begin."""
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def join(self, seconds: float) -> bool:
        """Wait so long for the end; whether it is there."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            self._result = self.action()
        except BaseException as error:
            told = str(error) if isinstance(error, (YuanError, OSError)) else f"{type(error).__name__}: {error}"
            self.error, self.failure = error, told

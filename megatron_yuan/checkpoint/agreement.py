"""All ranks succeed or all fail: an error on one becomes the same error on every one, and nobody waits for ever."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from megatron_yuan.errors import CheckpointError, YuanError

T = TypeVar("T")


class Ranks(Protocol):
    """What checkpoints need to know of the processes; `parallel.topology.Topology` is one such thing."""

    @property
    def rank(self) -> int:
        """This process."""
        ...

    @property
    def world_size(self) -> int:
        """Number of processes."""
        ...

    @property
    def pp_rank(self) -> int:
        """Pipeline stage of this process."""
        ...

    @property
    def dp_rank(self) -> int:
        """Replica of this process; every replica of a stage holds the same tensors."""
        ...

    def gather(self, value: Any) -> list[Any]:
        """Every rank's `value`, in order of ranks, on every rank."""
        ...


@dataclass(frozen=True)
class Alone:
    """The ranks of a program of one process, for tools."""

    rank: int = 0
    world_size: int = 1
    pp_rank: int = 0
    dp_rank: int = 0

    def gather(self, value: Any) -> list[Any]:
        """The one value."""
        return [value]


ALONE = Alone()


def together(ranks: Ranks, what: str, action: Callable[[], T]) -> list[T]:
    """Run `action` on every rank; returns every rank's result, in order of ranks, on every rank.

    If it failed anywhere it fails everywhere, with a CheckpointError that says `what`, the rank and its reason. A rank
    on which it failed by a bug keeps its own exception and traceback.
    """
    result, failure = None, None
    try:
        result = action()
    except Exception as error:
        failure = error
    reports = ranks.gather((result, None if failure is None else _reason(failure)))
    failed = {rank: reason for rank, (_, reason) in enumerate(reports) if reason is not None}
    if failure is not None and (ranks.world_size == 1 or not isinstance(failure, (YuanError, OSError))):
        raise failure
    if failed:
        rank, reason = next(iter(failed.items()))
        others = f" (and on {len(failed) - 1} more ranks)" if len(failed) > 1 else ""
        raise CheckpointError(f"{what} failed on rank {rank}{others}: {reason}") from failure
    return [result for result, _ in reports]


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, (YuanError, OSError)) else f"{type(error).__name__}: {error}"

"""All ranks succeed or all fail: an error on one becomes the same error on every one, and nobody waits for ever."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from megatron_yuan.checkpoint.damage import DamagedError
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

    def gather(self, value: Any, beats: bool = True) -> list[Any]:
        """Every rank's `value`, in order of ranks, on every rank. Not `beats`: it is no sign that the work goes on."""
        ...


@dataclass(frozen=True)
class Alone:
    """The ranks of a program of one process, for tools."""

    rank: int = 0
    world_size: int = 1
    pp_rank: int = 0
    dp_rank: int = 0

    def gather(self, value: Any, beats: bool = True) -> list[Any]:
        """The one value."""
        return [value]


ALONE = Alone()


def together(ranks: Ranks, what: str, action: Callable[[], T]) -> list[T]:
    """Run `action` on every rank; returns every rank's result, in order of ranks, on every rank.

    If it failed anywhere it fails everywhere, with a CheckpointError that says `what`, the rank and its reason: a
    DamagedError where damage is all that was met. A rank on which it failed by a bug keeps its own exception and
    traceback.
    """
    result, failure = None, None
    try:
        result = action()
    except Exception as error:
        failure = error
    reports = ranks.gather((result, Failure.of(failure)))
    raise_alike(ranks, what, failure, [each for _, each in reports])
    return [result for result, _ in reports]


@dataclass(frozen=True)
class Failure:
    """An exception in a form that travels between ranks."""

    reason: str
    damage: bool

    @classmethod
    def of(cls, error: BaseException | None) -> Failure | None:
        """None of None."""
        if error is None:
            return None
        return cls(
            str(error) if _expected(error) else f"{type(error).__name__}: {error}", isinstance(error, DamagedError)
        )


def raise_alike(ranks: Ranks, what: str, own: BaseException | None, failures: Sequence[Failure | None]) -> None:
    """Raise on this rank what `together` promises, for all ranks' `failures` in order of ranks, `own` being this
    one's; return where there are none."""
    if own is not None and (ranks.world_size == 1 or not _expected(own)):
        raise own
    failed = {rank: each for rank, each in enumerate(failures) if each is not None}
    if failed:
        kind = DamagedError if all(each.damage for each in failed.values()) else CheckpointError
        rank, first = next((rank, each) for rank, each in failed.items() if kind is DamagedError or not each.damage)
        others = f" (and on {len(failed) - 1} more ranks)" if len(failed) > 1 else ""
        raise kind(f"{what} failed on rank {rank}{others}: {first.reason}") from own


def _expected(error: BaseException) -> bool:
    return isinstance(error, (YuanError, OSError))

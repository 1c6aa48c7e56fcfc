"""What the launcher says about this run; without torch, so that a mistake in the settings costs no waiting."""

from __future__ import annotations

import os

from megatron_yuan.errors import ParallelError


def rank() -> int:
    """This process among them; 0 without a launcher."""
    return _number("RANK", 0)


def local_rank() -> int:
    """This process among those of its host."""
    return _number("LOCAL_RANK", 0)


def world_size() -> int:
    """Number of processes that torchrun (or any launcher that sets WORLD_SIZE) started; 1 without a launcher."""
    return _number("WORLD_SIZE", 1, least=1)


def meeting_place() -> tuple[str, int]:
    """Host and port of the store at which several processes meet. Raises ParallelError where they cannot know it."""
    size = world_size()
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        if not os.environ.get(name):
            raise ParallelError(
                f"WORLD_SIZE is {size}, but {name} is not set: each process needs RANK, LOCAL_RANK, WORLD_SIZE, "
                "MASTER_ADDR and MASTER_PORT.\nFix: start with torchrun, which sets them all, or unset WORLD_SIZE."
            )
    if rank() >= size:
        raise ParallelError(f"RANK is {rank()}, but WORLD_SIZE is {size}: ranks count from 0 to WORLD_SIZE - 1.")
    return os.environ["MASTER_ADDR"], _number("MASTER_PORT", 0, least=1, most=65535)


def _number(name: str, without: int, least: int = 0, most: int | None = None) -> int:
    value = os.environ.get(name, str(without))
    if not value.isdecimal() or int(value) < least or (most is not None and int(value) > most):
        rule = f"{least} or more" if most is None else f"{least} to {most}"
        raise ParallelError(
            f"the environment variable {name} is '{value}': a launcher sets it to a whole number, {rule}."
        )
    return int(value)

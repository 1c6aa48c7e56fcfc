"""What the launcher says about this run; without torch, so that a mistake in the settings costs no waiting."""

from __future__ import annotations

import os


def rank() -> int:
    """This process among them; 0 without a launcher."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Number of processes that torchrun (or any launcher that sets WORLD_SIZE) started; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))

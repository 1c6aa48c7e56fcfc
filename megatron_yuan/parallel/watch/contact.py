"""Whether an error is the fault of another process: a collective or an exchange that failed."""

from __future__ import annotations

import re

import torch.distributed as dist

_TRANSPORT = re.compile(
    r"gloo|nccl|connection (was )?(closed|reset|refused|aborted)|broken pipe|socket|timed out waiting", re.IGNORECASE
)


def lost_contact(error: BaseException) -> bool:
    """By its type, or by its text: what gloo raises is a plain RuntimeError."""
    if isinstance(error, dist.DistError):  # pyright: ignore[reportPrivateImportUsage]
        return True
    return type(error) is RuntimeError and _TRANSPORT.search(str(error)) is not None

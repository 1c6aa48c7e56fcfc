"""Damage: bytes that are not those that were written. Told from other mistakes, because there is a remedy for it.

A damaged checkpoint of a run's own is set aside under another name, never deleted, and the newest one before it serves.
What is wrong without being damaged (another model, a newer format, no right to read) stays an error: going back
would hide it.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from megatron_yuan.checkpoint import layout
from megatron_yuan.errors import CheckpointError

log = logging.getLogger(__name__)


class DamagedError(CheckpointError):
    """A file of a checkpoint is missing, cut short or changed."""


def set_aside(path: Path, damage: Exception) -> Path:
    """Rename the damaged checkpoint at `path`, so that nobody takes it for a whole one; returns its new path.

    Raises CheckpointError where that is not possible.
    """
    kept = path.with_name(f"{path.name.partition('.')[0]}.damaged-{layout.new_token()}")
    try:
        os.rename(path, kept)
        layout.sync_folder(path.parent)
    except OSError as error:
        raise CheckpointError(f"{damage}. It could not be set aside as {kept.name}: {error.strerror}") from None
    log.warning("%s. Set aside as %s; taking the newest checkpoint before it", damage, kept.name)
    return kept

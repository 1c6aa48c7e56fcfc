"""What a run says in words: one logger, heard from rank 0 alone, in full view of the progress bar and of log.txt.

`logger.info` speaks for the run and is silent on other ranks; `logger.warning` is heard from every rank, by name.
Knows neither torch nor megatron.
"""

from __future__ import annotations

import logging
import os
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from rich.console import Console
from rich.text import Text

logger = logging.getLogger("megatron_yuan")


class _LastingConsole(Console):
    """One whose reader may go away (`| head`, a `tee` that the same Ctrl-C ended): lines are lost then, not the run."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


@cache
def console() -> Console:
    """The terminal (or pipe) of this process; lines printed through it do not tear a progress bar on it."""
    return _LastingConsole(soft_wrap=True, highlight=False, markup=False, emoji=False)


def configure(rank: int = 0, world_size: int = 1) -> None:
    """Let this process speak as `rank` of `world_size`. Calling again replaces the former setting."""
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
    if rank == 0:
        handler: logging.Handler = _ConsoleHandler()
    else:
        handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter("%(message)s" if rank == 0 else f"[rank {rank} of {world_size}] %(message)s"))
    logger.addHandler(handler)
    if rank == 0:
        logger.addHandler(_Early())
    logger.setLevel(logging.INFO if rank == 0 else logging.WARNING)
    logger.propagate = False


@contextmanager
def mirrored_to(path: Path) -> Iterator[None]:
    """Append everything said meanwhile to the file `path` too, and before it what was said since `configure`, each line
    with its time."""
    handler = _Mirror(path, encoding="utf-8")
    handler.setFormatter(_Formatter("%(asctime)s %(message)s", datefmt="%Y-%m-%d %H:%M:%S"))
    for early in [each for each in logger.handlers if isinstance(each, _Early)]:
        logger.removeHandler(early)
        for record in early.records:
            handler.handle(record)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()


class _Formatter(logging.Formatter):
    """Puts the word 'warning' before what is one."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        if record.levelno >= logging.WARNING:
            record.message = f"{record.levelname.lower()}: {record.message}"
        return super().formatMessage(record)


class _Early(logging.Handler):
    """Keeps what is said before there is a run folder, such as that a damaged checkpoint was set aside."""

    def __init__(self) -> None:
        super().__init__()
        self.records: deque[logging.LogRecord] = deque(maxlen=1000)

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


class _Mirror(logging.FileHandler):
    """A file whose disk may fill up: that is said once, and costs the file's lines, not the run."""

    _failing = False

    def handleError(self, record: logging.LogRecord) -> None:
        if not self._failing:
            self._failing = True  # first, as the warning comes here too
            logger.warning(
                "%s cannot be written (%s): lines are missing from it.", self.baseFilename, sys.exc_info()[1]
            )

    def close(self) -> None:
        try:
            super().close()
        except OSError as error:
            if not self._failing:
                logger.warning("%s cannot be written (%s): its last lines are missing.", self.baseFilename, error)


class _ConsoleHandler(logging.Handler):
    """Prints through the shared console, warnings in colour where there is colour."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            console().print(Text(self.format(record), style="yellow" if record.levelno >= logging.WARNING else ""))
        except Exception:
            self.handleError(record)

"""What every test leaves as it found it."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from megatron_yuan import log


@pytest.fixture(autouse=True)
def _voice_of_the_process() -> Iterator[None]:
    """A test that lets the process speak as some rank must not take the words from a later one's `caplog`."""
    logger = log.logger
    handlers, level, propagate = list(logger.handlers), logger.level, logger.propagate
    yield
    logger.handlers[:], logger.propagate = handlers, propagate
    logger.setLevel(level)


@pytest.fixture(autouse=True, scope="session")
def _hang_ups_are_heard() -> Iterator[None]:
    """Under nohup they are not, and processes that a test starts would inherit that: runs that nothing hangs up."""
    former = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, former)

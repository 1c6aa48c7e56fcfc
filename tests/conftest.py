"""What every test leaves as it found it."""

from __future__ import annotations

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

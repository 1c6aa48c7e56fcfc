"""Each touch of megatron-core that is private, noisy or tied to a version: one named function, what it does and why."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    """Hide megatron-core's import-time remarks on packages this project never needs (Transformer Engine, apex).

    Upstream: module level of core/optimizer, core/distributed/fsdp and others in 0.16. Nothing else is hidden:
    errors raise.
    """
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)

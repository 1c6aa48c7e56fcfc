"""The door to lm-evaluation-harness, which the extra `eval` brings: loaded late, quiet, and never on the network."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megatron_yuan.errors import ConfigError


def open_harness() -> None:
    """Load the harness. ConfigError where it is not installed."""
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        os.environ.setdefault(name, "1")
    try:
        import lm_eval.tasks  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"evaluation needs lm-evaluation-harness, which cannot be loaded here ({error}).\n"
            "Fix: pip install 'lm-eval>=0.4.13,<0.5' (the extra `eval`)."
        ) from None
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # its remarks are on how tasks are written


@contextmanager
def without_its_bars() -> Iterator[None]:
    """The harness draws a bar for each task on every process, whatever it is told; ours is enough."""
    import lm_eval.api.task

    bar = lm_eval.api.task.tqdm
    lm_eval.api.task.tqdm = lambda iterable, **_: iterable
    try:
        yield
    finally:
        lm_eval.api.task.tqdm = bar


def harness_folder() -> Path:
    """Where the harness's own tasks lie."""
    import lm_eval

    return Path(str(lm_eval.__file__)).parent / "tasks"

"""The training program, on rank 1 slower to leave than its peers, as slow data workers would make it."""

from __future__ import annotations

import os
import runpy
import sys
import time

from megatron_yuan.training.run import Run

release = Run.release


def slow_release(self: Run) -> None:
    release(self)
    if os.environ["RANK"] == "1":
        time.sleep(3)


Run.release = slow_release  # type: ignore[method-assign]
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")

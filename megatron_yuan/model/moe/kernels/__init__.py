"""Triton kernels of the experts' layer for CUDA, each the fast form of a torch function that is its oracle.

They are used on CUDA where triton can be imported (a CUDA build of torch brings it), else torch's forms are.
MEGATRON_YUAN_KERNELS=torch switches them off.
"""

from __future__ import annotations

import os
from functools import cache
from importlib.util import find_spec

from torch import Tensor

from megatron_yuan.log import logger

SWITCH = "MEGATRON_YUAN_KERNELS"


def usable(x: Tensor) -> bool:
    """Whether a kernel may be started on `x`."""
    return x.is_cuda and _wanted_and_there()


@cache
def _wanted_and_there() -> bool:
    if os.environ.get(SWITCH) == "torch":
        logger.info("%s=torch: the experts' layer runs on torch's kernels alone", SWITCH)
        return False
    if find_spec("triton") is None:
        logger.info("triton is not installed: the experts' layer runs on torch's kernels alone, slower")
        return False
    return True

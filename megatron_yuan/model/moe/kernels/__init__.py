"""Triton kernels of the experts' layer for CUDA, each the fast form of a torch function that is its oracle.

Where tensors are on CUDA and triton works (CUDA builds of torch bring it), the kernel is taken, else torch's form;
the first time a kernel is not, the log says why. MEGATRON_YUAN_KERNELS=torch switches all of them off.

A kernel's module has `unfit(x)`, why it cannot take tensors like `x` or None, and `trial(device)`, which runs it on
one row. The token permutation has none: index_select and embedding_bag are one pass over memory each as they are.
"""

from __future__ import annotations

import os
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

import torch
from torch import Tensor

from megatron_yuan.errors import ConfigError
from megatron_yuan.log import logger

SWITCH = "MEGATRON_YUAN_KERNELS"


def kernel_for(name: str, x: Tensor) -> ModuleType | None:
    """The module `name` of this package if its kernel is to be run on tensors like `x`, else None."""
    if not x.is_cuda:
        return None
    module = _load(name, x.device)
    if module is None:
        return None
    reason = module.unfit(x)
    if reason is None:
        return module
    _say_unused(name, reason)
    return None


@cache
def _load(name: str, device: torch.device) -> ModuleType | None:
    """The kernel's module once it ran on `device`. Nothing of triton is imported before a CUDA tensor asks for it."""
    switch = os.environ.get(SWITCH, "")
    if switch not in ("", "torch"):
        raise ConfigError(f"{SWITCH}={switch}: only 'torch' is known; leave it unset for Triton's kernels on CUDA.")
    if switch:
        return _say_unused(name, f"{SWITCH}=torch")
    if find_spec("triton") is None:
        return _say_unused(name, "triton is not installed")
    try:
        module = import_module(f"{__name__}.{name}")
        module.trial(device)
    except Exception as error:  # what a compiler, an assembler or a driver may raise has no common base
        logger.warning("kernel %s not used on %s: %s: %s", name, device, type(error).__name__, error)
        return None
    return module


@cache  # so that each reason is said once
def _say_unused(name: str, reason: str) -> None:
    logger.info("kernel %s not used: %s", name, reason)

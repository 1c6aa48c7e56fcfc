"""Lets megatron-core's own schedules, p2p and DDP run on a CPU with gloo, by giving them another `torch`.

They say `device="cuda"`, `torch.cuda.current_device()` and `torch.cuda.synchronize()` throughout. In every loaded
`megatron.core` module the global name `torch` is replaced by a proxy that passes everything through, except:

- factory functions turn `device="cuda"` into `device="cpu"`;
- `cuda.current_device()` answers `torch.device("cpu")`, and waiting for the device does nothing.

torch itself stays untouched, so no other code is affected.
"""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Callable
from typing import Any

import torch

FACTORIES = ("tensor", "zeros", "ones", "empty", "full", "arange", "zeros_like", "ones_like", "empty_like", "full_like")


class _CudaOnCpu(types.ModuleType):
    """`torch.cuda` where the current device is the CPU."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch.cuda, name)

    @staticmethod
    def current_device() -> torch.device:
        return torch.device("cpu")

    @staticmethod
    def synchronize(*_: object) -> None:
        pass

    @staticmethod
    def empty_cache() -> None:
        pass


class _TorchOnCpu(types.ModuleType):
    """`torch` whose factories make CPU tensors when asked for CUDA ones."""

    def __init__(self) -> None:
        super().__init__("torch")
        self.cuda = _CudaOnCpu("torch.cuda")
        for name in FACTORIES:
            setattr(self, name, _factory_on_cpu(getattr(torch, name)))

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def _factory_on_cpu(factory: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    @functools.wraps(factory)
    def on_cpu(*args: Any, **kwargs: Any) -> torch.Tensor:
        if str(kwargs.get("device", "")).startswith("cuda"):
            kwargs["device"] = "cpu"
        return factory(*args, **kwargs)

    return on_cpu


_PROXY = _TorchOnCpu()


def use_cpu() -> None:
    """Give every megatron-core module loaded so far the CPU's `torch`; call it again after importing more of them."""
    for name, module in list(sys.modules.items()):
        if name.startswith("megatron.core") and getattr(module, "torch", None) is torch:
            module.torch = _PROXY  # type: ignore[attr-defined]

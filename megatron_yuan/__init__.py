"""Pretraining of mixture-of-experts language models of the Yuan 2.0-M32 family; see pretrain_yuan_moe.py."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from megatron_yuan.version import __version__

if TYPE_CHECKING:
    from megatron_yuan.inference.load import load as load

__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    # torch takes seconds to import; `import megatron_yuan` must not.
    if name == "load":
        from megatron_yuan.inference.load import load

        return load
    raise AttributeError(f"module 'megatron_yuan' has no attribute {name!r}")

"""megatron-core's pipeline schedules, data parallelism and process groups, as this project uses them.

Names re-exported by theme; whatever is private upstream or differs between versions is in compat.py.
"""

from __future__ import annotations

from importlib import import_module

from megatron_yuan.mcore.compat import importing, quiet
from megatron_yuan.mcore.version import check_version

check_version()
with importing():
    # The schedules import this in the midst of the first step; here its remarks are hidden too.
    import_module("megatron.core.transformer.multi_token_prediction")
    from megatron.core import parallel_state
    from megatron.core.distributed import (
        DistributedDataParallel,
        DistributedDataParallelConfig,
        finalize_model_grads,
    )
    from megatron.core.enums import ModelType
    from megatron.core.pipeline_parallel.schedules import get_forward_backward_func
    from megatron.core.transformer.module import MegatronModule
    from megatron.core.transformer.transformer_config import TransformerConfig

__all__ = [
    "DistributedDataParallel",
    "DistributedDataParallelConfig",
    "MegatronModule",
    "ModelType",
    "TransformerConfig",
    "finalize_model_grads",
    "get_forward_backward_func",
    "parallel_state",
    "quiet",
]

"""FLOPs as DeepSpeed's profiler counts them while a model runs: an independent check of planning/accounting.py.

It wraps torch's functions and adds up what each call would cost. It knows neither grouped_mm nor out= products, so the
experts are the looped ones; it counts attention scores over all keys, and elementwise arithmetic as well.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from megatron_yuan.config.schema import Config
from megatron_yuan.errors import ConfigError
from megatron_yuan.model.context import token_context
from megatron_yuan.model.initialize import initialize
from megatron_yuan.model.model import YuanModel


class _Logits(nn.Module):
    """Token ids to logits, in one call as the profiler wants it."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = replace(config.model, moe_experts="looped", attention_dropout=0.0, hidden_dropout=0.0)
        self.model = YuanModel(self.config)
        initialize(self.model, self.config, config.training.seed)

    def forward(self, ids_BS: Tensor) -> Tensor:
        positions_BS = torch.arange(ids_BS.shape[1]).expand_as(ids_BS)
        context = token_context(self.config, positions_BS, torch.float32)
        return self.model.logits(self.model(ids_BS, context).hidden_BSH)


@torch.no_grad()
def profiled_flops(config: Config) -> float:
    """FLOPs a token, forward, of one sample on the CPU in float32. Raises ConfigError without the 'deepspeed' extra."""
    try:
        from deepspeed.profiling.flops_profiler import FlopsProfiler  # type: ignore[import-not-found]
    except ImportError:
        raise ConfigError(
            "DeepSpeed's profiler is not installed. Fix: pip install 'megatron_yuan[deepspeed]'"
        ) from None
    model = _Logits(config)
    random = torch.Generator().manual_seed(config.training.seed)
    ids_BS = torch.randint(config.model.vocab_size, (1, config.data.seq_length), generator=random)
    profiler = FlopsProfiler(model)
    profiler.start_profile()
    model(ids_BS)
    flops = float(profiler.get_total_flops())
    profiler.end_profile()
    return flops / ids_BS.numel()

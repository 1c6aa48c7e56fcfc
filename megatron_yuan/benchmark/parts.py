"""Where a training step's time goes, part by part, from hooks around the modules: forward and backward together.

A module's backward time runs from its output's gradient to its input's, so it holds the weights' gradients too.
Parts nest: the filter's time is taken out of attention's, and what a MoE layer spends outside router and experts is
dispatch.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from megatron_yuan.model.attention import LocalizedFilteringAttention
from megatron_yuan.model.localized_filtering import LocalizedFiltering
from megatron_yuan.model.moe.experts import Experts
from megatron_yuan.model.moe.layer import MoELayer
from megatron_yuan.model.moe.routers import Router

PARTS: dict[type[nn.Module], str] = {
    LocalizedFilteringAttention: "attention",
    LocalizedFiltering: "filter",
    MoELayer: "dispatch",
    Router: "router",
    Experts: "experts",
}
INSIDE = {"filter": "attention", "router": "dispatch", "experts": "dispatch"}
"""A part's own time is not its surrounding part's."""


class PartTimer:
    """Seconds by part, summed over layers and microbatches, while `watch` lasts."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = defaultdict(float)
        self._started: dict[tuple[str, int], float] = {}

    @contextmanager
    def watch(self, models: Iterable[nn.Module]) -> Iterator[PartTimer]:
        """Time the parts of `models`; the hooks make a step a little slower, so shares are to be read, not sums."""
        handles = []
        for model in models:
            for module in model.modules():
                part = next((name for kind, name in PARTS.items() if isinstance(module, kind)), None)
                if part is not None:
                    handles += self._hook(module, part)
        try:
            yield self
        finally:
            for handle in handles:
                handle.remove()

    def own_seconds(self) -> dict[str, float]:
        """Seconds of each part without the parts inside it."""
        own = dict(self.seconds)
        for inner, outer in INSIDE.items():
            own[outer] = own.get(outer, 0.0) - self.seconds.get(inner, 0.0)
        return own

    def _hook(self, module: nn.Module, part: str) -> list[torch.utils.hooks.RemovableHandle]:
        def start(*_: object) -> None:
            self._started[part, id(module)] = self._now()

        def stop(*_: object) -> None:
            self.seconds[part] += self._now() - self._started.pop((part, id(module)))

        return [
            module.register_forward_pre_hook(start),
            module.register_forward_hook(stop),
            module.register_full_backward_pre_hook(start),
            module.register_full_backward_hook(stop),
        ]

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

"""The classical router: one linear score an expert (Mixtral; the M32 paper's baseline, Table 1)."""

from __future__ import annotations

from torch import Tensor

from megatron_yuan.model.moe.routers.base import Router
from megatron_yuan.model.product import product


class SoftmaxRouter(Router):
    """Logits = x W^T, in the model's dtype, then float32."""

    def logits(self, x_TH: Tensor) -> Tensor:
        """Linear scores [T, E]."""
        return product(x_TH, self.weight).float()

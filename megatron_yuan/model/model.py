"""The model, or any run of its layers: the same class is the whole network and one pipeline stage's part of it.

Shapes: B batch, S sequence, H hidden, V padded vocabulary.

- Parameters have global names (`layers.7.moe.experts.down`), so a part's state is a plain subset of the whole's.
- Tied embeddings: the part with the head holds its own copy under the same name, `embedding.weight`.
- Tensors only: no ranks, no files, no steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from megatron_yuan.config.schema import ModelConfig
from megatron_yuan.model.attention import AttentionCache
from megatron_yuan.model.context import TokenContext
from megatron_yuan.model.embedding import TokenEmbedding
from megatron_yuan.model.layer import YuanLayer
from megatron_yuan.model.moe.experts import Experts
from megatron_yuan.model.moe.stats import RouterStats, stack
from megatron_yuan.model.norm import RMSNorm
from megatron_yuan.model.product import Linear, product


class ModelOutput(NamedTuple):
    """What a part hands on."""

    hidden_BSH: Tensor
    """Hidden states; after the final norm where the part holds the head."""
    stats: RouterStats | None
    """What the routing of each layer held here looked like; None where the context does not ask."""


class YuanModel(nn.Module):
    """Embedding (if `is_first`), the layers named, final norm and head (if `is_last`).

    To spare memory, backward makes again: the first `recompute_layers` layers whole; of each, with
    `recompute_products`, the experts' first product.
    """

    def __init__(
        self,
        config: ModelConfig,
        layers: Sequence[int] | None = None,
        is_first: bool = True,
        is_last: bool = True,
        recompute_layers: int = 0,
        recompute_products: bool = False,
    ) -> None:
        super().__init__()
        self.config, self.is_first, self.is_last = config, is_first, is_last
        self.recompute_layers = recompute_layers
        layer_ids = range(config.num_layers) if layers is None else layers
        tied_head = is_last and not config.untie_embeddings_and_output_weights
        if is_first or tied_head:
            self.embedding = TokenEmbedding(config.padded_vocab_size, config.hidden_size)
        self.layers = nn.ModuleDict({str(i): YuanLayer(config, i) for i in layer_ids})
        for experts in (module for module in self.modules() if isinstance(module, Experts)):
            experts.keep_h = not recompute_products
        if is_last:
            self.final_norm = RMSNorm(config.hidden_size, config.norm_epsilon)
            if config.untie_embeddings_and_output_weights:
                self.head = Linear(config.hidden_size, config.padded_vocab_size)

    @property
    def layer_ids(self) -> list[int]:
        """Global numbers of the layers held here."""
        return [layer.layer for layer in self.layers.values()]  # type: ignore[misc]

    @property
    def output_weight(self) -> Tensor:
        """The head's matrix [V, H]."""
        return self.head.weight if self.config.untie_embeddings_and_output_weights else self.embedding.weight

    def forward(self, x: Tensor, context: TokenContext, caches: Sequence[AttentionCache] | None = None) -> ModelOutput:
        """Token ids [B, S] (first part) or hidden states [B, S, H] -> hidden states, with what the routers did."""
        x_BSH = self.embedding(x) if self.is_first else x
        stats = []
        for i, layer in enumerate(self.layers.values()):
            if i < self.recompute_layers and torch.is_grad_enabled():
                # Random draws are keyed, not taken from a stream, so there is no generator state to put back.
                x_BSH, layer_stats = checkpoint(layer, x_BSH, context, use_reentrant=False, preserve_rng_state=False)
            else:
                x_BSH, layer_stats = layer(x_BSH, context, caches[i] if caches else None)
            stats.append(layer_stats)
        return ModelOutput(self.final_norm(x_BSH) if self.is_last else x_BSH, stack(stats) if context.counted else None)

    def logits(self, hidden_BSH: Tensor) -> Tensor:
        """Scores of the next token [B, S, V] from normed hidden states."""
        return product(hidden_BSH, self.output_weight)

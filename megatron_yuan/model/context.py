"""What every layer needs to know of the tokens at hand besides their hidden states; made once a forward pass.

Shapes: B batch, S sequence, R rotated width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_yuan.config.schema import ModelConfig
from megatron_yuan.model.documents import Buckets, bucket_documents, document_spans
from megatron_yuan.model.moe.balance import Balance
from megatron_yuan.model.rotary import rotary_tables


@dataclass(frozen=True)
class TokenContext:
    """Positions, document bounds and random keys of one batch of tokens."""

    cos: Tensor
    """Rotary cosines [B, S, 1, 1, R], in the dtype of the model."""
    sin: Tensor
    """Rotary sines, likewise."""
    starts_BS: Tensor | None = None
    """True where a document starts that must not see what is before it; None: nothing is isolated."""
    documents: Buckets | None = None
    """The isolated documents; None: rows are whole."""
    sample_keys: Sequence[int] | None = None
    """A random key for each row, from seed, step and sample id; None: nothing random (evaluation)."""
    first_B: Tensor | None = None
    """With left padding: the first true position of each row in the cache."""
    balance: Balance | None = None
    """In training, what balance losses ask for; None: there is no loss to balance."""
    counted: bool = True
    """Whether to count what the routers do; generation does not ask."""


def token_context(
    config: ModelConfig,
    position_ids_BS: Tensor,
    dtype: torch.dtype,
    document_start_BS: Tensor | None = None,
    sample_keys: Sequence[int] | None = None,
    first_B: Tensor | None = None,
    starts_BS: Tensor | None = None,
    balance: Balance | None = None,
    counted: bool = True,
    rotary: tuple[Tensor, Tensor] | None = None,
) -> TokenContext:
    """The context of tokens at `position_ids` [B, S].

    `document_start_BS` isolates documents: the index in its row at which each token's document begins.
    `rotary`: what `rotary_of` says of these positions, where it is at hand.
    """
    cos, sin = rotary or rotary_of(config, position_ids_BS)
    documents = None
    if document_start_BS is not None:
        here = torch.arange(document_start_BS.shape[1], device=document_start_BS.device)
        starts_BS = document_start_BS == here
        documents = bucket_documents(document_spans(starts_BS), starts_BS.shape[1], position_ids_BS.device)
        starts_BS = starts_BS.to(position_ids_BS.device)
    return TokenContext(
        cos[:, :, None, None].to(dtype),
        sin[:, :, None, None].to(dtype),
        starts_BS,
        documents,
        sample_keys,
        first_B,
        balance,
        counted,
    )


def rotary_of(config: ModelConfig, position_ids_BS: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin [B, S, R] of positions, float32, as the model has them."""
    return rotary_tables(
        position_ids_BS, config.rotary_dim, config.rotary_base, config.rotary_ntk_factor, config.rotary_rounding
    )

"""Localized-filtering attention.

Shapes: B batch, S sequence, H hidden, N heads, D head width, A = N x D, R rotated width, P cached positions.

- Queries and keys come from the filtered state, values from the unfiltered one.
- One matrix makes queries and keys, its rows interleaved by head as published: D rows of q, then D rows of k.
- A need not equal H (M32: 16 heads of 256 over H = 2048). The scale is 1 / sqrt(D). No biases outside the filter.
- The core is torch's scaled_dot_product_attention; no score matrix is made here, so memory is linear in S.
- Isolated documents are attended in batches of like length, which is exact and linear in S too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megatron_yuan.config.schema import ModelConfig
from megatron_yuan.model.context import TokenContext
from megatron_yuan.model.documents import Buckets, attend_in_buckets
from megatron_yuan.model.localized_filtering import FilterState, LocalizedFiltering
from megatron_yuan.model.product import Linear
from megatron_yuan.model.randomness import key, seeded
from megatron_yuan.model.rotary import rotate


@dataclass
class AttentionCache:
    """What one layer remembers of the tokens seen: rotated keys and values [B, N, P, D], and the filter's state."""

    keys_BNPD: Tensor
    values_BNPD: Tensor
    length: int = 0
    filter: FilterState | None = None

    @classmethod
    def empty(cls, config: ModelConfig, batch: int, capacity: int, like: Tensor) -> AttentionCache:
        """Room for `capacity` positions, in the dtype and on the device of `like`."""
        shape = (batch, config.num_attention_heads, capacity, config.head_dim)
        return cls(like.new_empty(shape), like.new_empty(shape))

    def rows(self, rows_R: Tensor) -> AttentionCache:
        """A copy of these rows, [R]; one may be asked for several times."""
        keys, values = (x[rows_R, :, : self.length] for x in (self.keys_BNPD, self.values_BNPD))
        state = None if self.filter is None else FilterState(*(x[rows_R] for x in self.filter))
        return AttentionCache(keys, values, self.length, state)

    def append(self, k_BNSD: Tensor, v_BNSD: Tensor) -> tuple[Tensor, Tensor]:
        """Store S more positions, in twice the room where it is too small; returns all keys and values so far."""
        end = self.length + k_BNSD.shape[2]
        if end > self.keys_BNPD.shape[2]:
            more = max(end, 2 * self.length) - self.length
            room = k_BNSD.new_empty(*k_BNSD.shape[:2], more, k_BNSD.shape[3])
            kept = slice(0, self.length)
            self.keys_BNPD = torch.cat((self.keys_BNPD[:, :, kept], room), dim=2)
            self.values_BNPD = torch.cat((self.values_BNPD[:, :, kept], room), dim=2)
        self.keys_BNPD.narrow(2, self.length, k_BNSD.shape[2]).copy_(k_BNSD)
        self.values_BNPD.narrow(2, self.length, v_BNSD.shape[2]).copy_(v_BNSD)
        self.length = end
        return self.keys_BNPD.narrow(2, 0, end), self.values_BNPD.narrow(2, 0, end)


class LocalizedFilteringAttention(nn.Module):
    """Causal self-attention whose queries and keys are filtered over the two tokens before."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.num_heads, self.head_dim = config.num_attention_heads, config.head_dim
        self.dropout = config.attention_dropout
        self.filter = LocalizedFiltering(config.hidden_size, config.norm_epsilon)
        self.query_key = Linear(config.hidden_size, 2 * config.attention_size)
        self.value = Linear(config.hidden_size, config.attention_size)
        self.output = Linear(config.attention_size, config.hidden_size)

    def forward(self, u_BSH: Tensor, context: TokenContext, cache: AttentionCache | None = None) -> Tensor:
        """Attend over `u` [B, S, H] (normed input) and, with a cache, over the tokens before it; returns [B, S, H]."""
        B, S, _ = u_BSH.shape
        filtered_BSH, filter_state = self.filter(u_BSH, cache.filter if cache else None, context.starts_BS)
        qk_BSN2D = self.query_key(filtered_BSH).view(B, S, self.num_heads, 2, self.head_dim)
        q_BNSD, k_BNSD = rotate(qk_BSN2D, context.cos, context.sin).permute(3, 0, 2, 1, 4).unbind(0)
        v_BNSD = self.value(u_BSH).view(B, S, self.num_heads, self.head_dim).transpose(1, 2)
        if cache is not None:
            # Of many tokens the last one's state alone, not as a view that keeps the products of all.
            cache.filter = filter_state if S == 1 else FilterState(*(x.clone() for x in filter_state))
            past = cache.length
            k_BNSD, v_BNSD = cache.append(k_BNSD, v_BNSD)
            core_BNSD = attend_to_past(q_BNSD, k_BNSD, v_BNSD, past, context.first_B)
        elif context.documents is not None:
            core_BNSD = self._attend_documents(q_BNSD, k_BNSD, v_BNSD, context.documents, context.sample_keys)
        else:
            core_BNSD = self._attend(q_BNSD, k_BNSD, v_BNSD, context.sample_keys)
        return self.output(core_BNSD.transpose(1, 2).reshape(B, S, -1))

    def _attend(
        self, q_BNSD: Tensor, k_BNSD: Tensor, v_BNSD: Tensor, sample_keys: Sequence[int] | None, *site: object
    ) -> Tensor:
        if self.dropout == 0.0 or sample_keys is None:
            return _causal(q_BNSD, k_BNSD, v_BNSD)
        rows = []
        for b, sample_key in enumerate(sample_keys):  # each sample draws from its own key, whatever shares its batch
            with seeded(q_BNSD.device, sample_key, self.layer, "attention", *site):
                one = slice(b, b + 1)
                rows.append(
                    F.scaled_dot_product_attention(
                        q_BNSD[one], k_BNSD[one], v_BNSD[one], dropout_p=self.dropout, is_causal=True
                    )
                )
        return torch.cat(rows)

    def _attend_documents(
        self,
        q_BNSD: Tensor,
        k_BNSD: Tensor,
        v_BNSD: Tensor,
        documents: Buckets,
        sample_keys: Sequence[int] | None,
    ) -> Tensor:
        if self.dropout == 0.0 or sample_keys is None:
            return attend_in_buckets(_causal, q_BNSD, k_BNSD, v_BNSD, documents)
        parts = []
        for row, start, end in documents.spans:  # each draws from its own key
            q, k, v = (x[row : row + 1, :, start:end] for x in (q_BNSD, k_BNSD, v_BNSD))
            parts.append(self._attend(q, k, v, [key(sample_keys[row], start)]))
        B, N, S, D = q_BNSD.shape
        rows_TND = torch.cat([part[0].transpose(0, 1) for part in parts])  # documents cover every row, in order
        return rows_TND.view(B, S, N, D).transpose(1, 2)


def _causal(q_BNSD: Tensor, k_BNSD: Tensor, v_BNSD: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q_BNSD, k_BNSD, v_BNSD, is_causal=True)


def attend_to_past(q_BNSD: Tensor, k_BNPD: Tensor, v_BNPD: Tensor, past: int, first_B: Tensor | None) -> Tensor:
    """Causal attention of S new tokens over P = past + S positions; row b sees none before `first_B[b]` (padding)."""
    S, P = q_BNSD.shape[2], k_BNPD.shape[2]
    if first_B is None and (past == 0 or S == 1):
        return F.scaled_dot_product_attention(q_BNSD, k_BNPD, v_BNPD, is_causal=S > 1)
    positions_P = torch.arange(P, device=q_BNSD.device)
    visible = positions_P <= positions_P[past:].unsqueeze(1)  # [S, P]
    if first_B is not None:
        # A padding token sees itself alone: a row of nothing would be a softmax over nothing.
        own = positions_P == positions_P[past:].unsqueeze(1)
        visible = ((visible & (positions_P >= first_B.view(-1, 1, 1))) | own).unsqueeze(1)
    return F.scaled_dot_product_attention(q_BNSD, k_BNPD, v_BNPD, attn_mask=visible)

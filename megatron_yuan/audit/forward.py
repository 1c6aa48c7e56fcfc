"""One pass of a model over a stream of tokens, from the batch to its losses, with taps at every part.

Shapes: B batch, S sequence, V padded vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from megatron_yuan.audit.parts import HEAD, LOSS, POSITIONS
from megatron_yuan.audit.probes import SAMPLE_KEYS, Setting
from megatron_yuan.audit.taps import Taps, Visitor
from megatron_yuan.data import batch as batches
from megatron_yuan.inference.model import LanguageModel
from megatron_yuan.model import context as contexts
from megatron_yuan.model import loss as losses
from megatron_yuan.model.context import TokenContext
from megatron_yuan.model.model import YuanModel
from megatron_yuan.model.moe.balance import Balance


class Pass(NamedTuple):
    """What came out."""

    logits_BSV: Tensor
    loss: Tensor
    """The sum of token losses where they count."""


@dataclass(frozen=True)
class Audited:
    """A model under audit, with what a pass needs besides tokens."""

    model: YuanModel
    taps: Taps
    eod_id: int

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.final_norm.weight.device

    def run(
        self,
        setting: Setting,
        stream_BS1: Tensor,
        visitor: Visitor,
        loss_mask_BS: Tensor | None = None,
        rows: list[int] | None = None,
    ) -> Pass:
        """Feed `stream` [B, S + 1]; `rows`: which of the clean rows these are, by which random keys go."""
        B, S = stream_BS1.shape[0], stream_BS1.shape[1] - 1
        self.taps.start(visitor, B, S)
        numbers = rows or list(range(B))
        batch = self.batch(setting, stream_BS1, numbers)
        context = self._context(setting, batch, [SAMPLE_KEYS[row] for row in numbers])
        batch = batch.to(self.device)
        hidden_BSH = YuanModel.forward(self.model, batch.tokens, context).hidden_BSH
        hidden_BSH = self.taps.through(HEAD, "in", hidden_BSH)
        logits_BSV = self.taps.through(HEAD, "out", self.model.logits(hidden_BSH))
        mask_BS = batch.loss_mask if loss_mask_BS is None else loss_mask_BS.to(batch.loss_mask)
        hidden_BSH = self.taps.through(LOSS, "in", hidden_BSH)
        total, losses_T = losses.linear_cross_entropy(
            hidden_BSH.flatten(0, 1), self.model.output_weight, batch.labels.flatten(), mask_BS.flatten()
        )
        self.taps.through(LOSS, "out", losses_T)
        return Pass(logits_BSV, total)

    def batch(self, setting: Setting, stream_BS1: Tensor, numbers: Sequence[int]) -> batches.Batch:
        """Inputs, labels, positions and documents of a stream."""
        reset_positions = setting.training and not setting.isolated
        return batches.make_batch(stream_BS1, numbers, self.eod_id, reset_positions, setting.isolated)

    def scores(self, setting: Setting, stream_BS1: Tensor, visitor: Visitor) -> Tensor:
        """Logits [B, S, V] as a user gets them: from the model's own call where it takes ids alone."""
        if isinstance(self.model, LanguageModel) and not setting.has_documents:
            ids_BS = stream_BS1[:, :-1]
            self.taps.start(visitor, *ids_BS.shape)
            return self.model(ids_BS)
        return self.run(setting, stream_BS1, visitor).logits_BSV

    def _balance(self) -> Balance:
        """Balance losses are made, and weigh nothing: outputs are not to depend on them."""
        return Balance(torch.zeros((), device=self.device), lambda _layer, load_E: load_E)

    def _context(self, setting: Setting, batch: batches.Batch, keys: list[int]) -> TokenContext:
        start_BS = batch.document_start
        if start_BS is not None:
            start_BS = self.taps.through(POSITIONS, "out", start_BS, "document starts")
        position_BS = self.taps.through(POSITIONS, "out", batch.position_ids.to(self.device), "position ids")
        context = contexts.token_context(
            self.model.config,
            position_BS,
            self.model.final_norm.weight.dtype,
            document_start_BS=start_BS,
            sample_keys=keys if setting.training else None,
            balance=self._balance() if setting.training else None,
        )
        cos = self.taps.through(POSITIONS, "out", context.cos, "cos")
        sin = self.taps.through(POSITIONS, "out", context.sin, "sin")
        return replace(context, cos=cos, sin=sin)

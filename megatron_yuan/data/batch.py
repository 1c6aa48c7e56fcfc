"""A microbatch: the shift by one token, positions, document bounds and the loss mask. All of it happens here and
only here.

Shapes: B batch, S sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """What one microbatch holds, for every pipeline stage alike."""

    tokens: Tensor
    """Input ids [B, S], int64."""
    labels: Tensor
    """The ids that follow them [B, S], int64."""
    loss_mask: Tensor
    """1.0 where a token's loss counts [B, S], float32."""
    position_ids: Tensor
    """Rotary positions [B, S], int64."""
    document_start: Tensor | None
    """Where documents are isolated: the index in its row at which each token's document begins [B, S]; else None."""
    sample_ids: Sequence[int]
    """The number in the data order of each row; keys the row's random draws."""
    set_ids: Sequence[int]
    """The set of the blend that each row is from."""

    def to(self, device: torch.device) -> Batch:
        """The same on `device`. Document bounds stay on the CPU, where attention is cut by them."""
        if device.type == "cpu":
            return self
        moved = {
            name: getattr(self, name).to(device, non_blocking=True)
            for name in ("tokens", "labels", "loss_mask", "position_ids")
        }
        return replace(self, **moved)


def make_batch(
    tokens_BS1: Tensor,
    sample_ids: Sequence[int],
    eod_id: int,
    reset_position_ids: bool = False,
    reset_attention_mask: bool = False,
    eod_mask_loss: bool = False,
    loss_mask_BS1: Tensor | None = None,
    set_ids: Sequence[int] | None = None,
    begins_BS1: Tensor | None = None,
) -> Batch:
    """Cut S + 1 tokens a row into inputs and labels.

    A document ends with its <eod>, so the next one starts at the token after an <eod> in the input.
    `reset_position_ids` counts positions from there; `reset_attention_mask` does so too, and isolates documents.
    `eod_mask_loss` leaves out the loss where the input is <eod>; `loss_mask_BS1` leaves out labels that it marks 0.
    `set_ids` unset: all rows are from set 0. `begins_BS1` marks where documents begin that no <eod> goes before.
    """
    tokens_BS, labels_BS = tokens_BS1[:, :-1].contiguous(), tokens_BS1[:, 1:].contiguous()
    mask_BS = torch.ones(tokens_BS.shape) if loss_mask_BS1 is None else loss_mask_BS1[:, 1:].float().contiguous()
    if eod_mask_loss:
        mask_BS = mask_BS * (tokens_BS != eod_id)
    here_BS = torch.arange(tokens_BS.shape[1]).expand_as(tokens_BS)
    start_BS = document_start(tokens_BS, eod_id, begins_BS1) if reset_position_ids or reset_attention_mask else None
    return Batch(
        tokens=tokens_BS,
        labels=labels_BS,
        loss_mask=mask_BS,
        position_ids=here_BS if start_BS is None else here_BS - start_BS,
        document_start=start_BS if reset_attention_mask else None,
        sample_ids=tuple(sample_ids),
        set_ids=tuple(set_ids) if set_ids is not None else (0,) * len(tokens_BS),
    )


def document_start(tokens_BS: Tensor, eod_id: int, begins_BS1: Tensor | None = None) -> Tensor:
    """The index in its row at which each token's document begins, [B, S] int64: after an <eod>, and where
    `begins_BS1` says so."""
    here_BS = torch.arange(tokens_BS.shape[1]).expand_as(tokens_BS)
    begins_BS = torch.zeros_like(tokens_BS, dtype=torch.bool) if begins_BS1 is None else begins_BS1[:, :-1].clone()
    begins_BS[:, 1:] |= tokens_BS[:, :-1] == eod_id
    return torch.where(begins_BS, here_BS, 0).cummax(dim=1).values

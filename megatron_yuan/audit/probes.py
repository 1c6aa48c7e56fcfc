"""What is fed to the model: clean tokens, tokens with a change, and which positions must not feel it.

Shapes: B batch, S sequence.

A change at token t may be felt from t on, in its own row: of a whole row to its end, of isolated documents up to the
next <eod>. Everything else must stay: what is before t, and the other rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_yuan.audit.arithmetic import ExpertsKind
from megatron_yuan.model.randomness import generator

ROWS = 3
MAX_CUTS = 128
SAMPLE_KEYS = (1009, 2003, 4001)


@dataclass(frozen=True)
class Setting:
    """What is common to a clean pass and those that are held against it."""

    sequence: int
    isolated: bool
    """Documents do not see each other (--reset-attention-mask)."""
    training: bool
    """With dropout and the router's noise, and positions counted within documents (--reset-position-ids)."""
    experts: ExpertsKind

    @property
    def has_documents(self) -> bool:
        """Whether <eod> has a meaning."""
        return self.isolated or self.training

    def __str__(self) -> str:
        mode = ("documents apart" if self.isolated else "whole rows") + (", training" if self.training else "")
        return f"{self.sequence} tokens a row, {mode}, {self.experts} experts"


@dataclass(frozen=True)
class Probe:
    """A change: the same rows with other tokens."""

    stream: Tensor
    """Tokens [B, S + 1] with the change; the last is a label alone."""
    changed: tuple[int | None, ...]
    """Where each row was changed."""
    kept: Tensor
    """[B, S]: what must be the same."""
    moves_documents: bool = False
    """Whether an <eod> came or went."""

    @property
    def kept_losses(self) -> Tensor:
        """[B, S]: likewise of the losses, of which that at t - 1 has the changed token as its label."""
        kept = self.kept.clone()
        for row, t in enumerate(self.changed):
            if t:
                kept[row, t - 1] = False
        return kept


def clean_stream(setting: Setting, vocabulary: int, eod_id: int, seed: int) -> Tensor:
    """Random tokens [B, S + 1]; where <eod> has a meaning, documents of several lengths."""
    S = setting.sequence
    random = generator(torch.device("cpu"), seed, setting)
    stream = torch.randint(vocabulary - 1, (ROWS, S + 1), generator=random)
    stream += stream >= eod_id  # any token but <eod>
    if setting.has_documents:
        ends = ((S // 3, 2 * S // 3), (S // 2, S // 2 + 1, S - 2), (0, S // 4))
        for row, positions in enumerate(ends):
            stream[row, [t for t in positions if 0 <= t < S]] = eod_id
    return stream


def probes(setting: Setting, clean: Tensor, vocabulary: int, eod_id: int) -> list[Probe]:
    """Changes at the first position, the last, and between, in some rows at once; some rows are left alone."""
    S = setting.sequence
    plans = [(S - 1, None, 0), (S // 2, min(1, S - 1), None)]
    if setting.has_documents and S >= 4:
        # In one document of several; then an <eod> comes, which cuts one in two, or goes, which joins two.
        plans += [(S // 3 - 1, S // 2 - 1, S // 4 - 1), (S // 6, S // 2, 0)]
    made = [_probe(setting, clean, plan, vocabulary, eod_id, put_eod=i == 3) for i, plan in enumerate(plans)]
    return made


def sweep(setting: Setting, clean: Tensor, vocabulary: int, eod_id: int, seed: int) -> Iterator[Probe]:
    """A change at every position after the first, one after another, in all rows; of longer rows at some, drawn.

    For what goes wrong at few positions only, as at the border of a tile.
    """
    random = generator(torch.device("cpu"), seed, setting.sequence)
    cuts = torch.randperm(setting.sequence - 1, generator=random)[:MAX_CUTS] + 1
    for t in cuts.sort().values.tolist():
        yield _probe(setting, clean, (t,) * ROWS, vocabulary, eod_id, put_eod=False)


def _probe(
    setting: Setting, clean: Tensor, plan: tuple[int | None, ...], vocabulary: int, eod_id: int, put_eod: bool
) -> Probe:
    stream, kept = clean.clone(), torch.ones(ROWS, setting.sequence, dtype=torch.bool)
    for row, t in enumerate(plan):
        if t is not None:
            others = [each % vocabulary for each in range(int(clean[row, t]) + 1, int(clean[row, t]) + 3)]
            stream[row, t] = next((each for each in others if each != eod_id), eod_id)
    if put_eod:
        stream[0, plan[0]] = eod_id
    is_end = clean[:, :-1] == eod_id
    moves = is_end != (stream[:, :-1] == eod_id)
    for row, t in enumerate(plan):
        if t is None:
            continue
        end = setting.sequence
        if setting.isolated:
            # The first <eod> from t on that stays one.
            stays = (is_end & ~moves)[row, t:].nonzero()
            end = t + 1 + int(stays[0]) if len(stays) else end
        kept[row, t:end] = False
    return Probe(stream, plan, kept, setting.has_documents and bool(moves.any()))

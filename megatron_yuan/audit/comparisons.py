"""The comparisons of an audit: parts between two passes, parts' gradients, rows in other company, the whole model.

Shapes: B batch, S sequence, H hidden, V padded vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from megatron_yuan.audit.arithmetic import experts_as
from megatron_yuan.audit.forward import Audited
from megatron_yuan.audit.parts import ATTENTION, COMBINE, EXPERTS, LOSS, WHOLE_MODEL, Aspect
from megatron_yuan.audit.probes import Probe, Setting
from megatron_yuan.audit.report import Leak, Report, leak_of, order_of
from megatron_yuan.audit.visitors import Comparer, Decisions, Difference, Embeddings, Gradients, Recorder

COMPANY_ROUNDING = 10.0
"""Times the tolerance: all products change their number of rows, and nothing is to the bit."""

GROWN_ROUNDING = 4.0
"""Layers amplify rounding: the whole model may show as many times what the logits of the same tokens differ by when
the experts are looped, or else the tolerance times the number of layers."""


@torch.no_grad()
def compare_values(audited: Audited, setting: Setting, clean: Recorder, probe: Probe, report: Report) -> None:
    """Every part after a change, against what it gave before, at the tokens that must be the same."""
    visitor = Comparer(clean, probe.kept, probe.kept_losses)
    audited.run(setting, probe.stream, visitor)
    seen = {place.path for place in visitor.compared}
    for place in visitor.compared:
        report.count(place.part("values"), setting.experts)
    for found in visitor.differences:
        part = found.place.part("values")
        # Rounding of experts that were not seen by themselves comes out where their layer ends.
        of_experts = part == EXPERTS or (part == COMBINE and f"{found.place.path}.experts" not in seen)
        rounds = (setting.experts == "grouped" and of_experts) or (probe.moves_documents and part == ATTENTION)
        _judge(report, found, report.tolerance if rounds else 0.0, audited, setting, probe)


@torch.no_grad()
def compare_company(
    audited: Audited, setting: Setting, clean: Recorder, clean_BS1: Tensor, rows: list[int], report: Report
) -> None:
    """Every part, of `rows` alone or in that order, against what it gave before."""
    kept = torch.ones(len(rows), setting.sequence, dtype=torch.bool)
    visitor = Comparer(clean, kept, rows=rows)
    audited.run(setting, clean_BS1[rows], visitor, rows=rows)
    probe = Probe(clean_BS1[rows], (None,) * len(rows), kept)
    for found in visitor.differences:
        if found.relative > COMPANY_ROUNDING * report.tolerance:
            _judge(report, found, 0.0, audited, setting, probe)


def _judge(report: Report, found: Difference, allowed: float, audited: Audited, setting: Setting, probe: Probe) -> None:
    if found.relative > allowed:
        report.leaks.append(leak_of(found, "values", setting, probe, audited.taps.strange_rows))
    else:
        report.count(found.place.part("values"), setting.experts, found.relative)


def watch_gradients(audited: Audited, setting: Setting, clean_BS1: Tensor, probe: Probe, report: Report) -> None:
    """Gradients of every part's outputs at the tokens that must not feel the change, by everything at the others."""
    visitor = Gradients(probe.kept.to(audited.device))
    with torch.enable_grad():
        visitor.outputs.append(audited.run(setting, clean_BS1, visitor, probe.kept).loss)
        visitor.take()
    for place in visitor.compared:
        report.count(place.part("gradient"), "gradient")
    for found in visitor.differences:
        report.leaks.append(leak_of(found, "gradient", setting, probe, audited.taps.strange_rows))


def compare_whole(
    audited: Audited, setting: Setting, clean_BS1: Tensor, changes: Sequence[Probe], report: Report
) -> None:
    """Logits at the tokens that must be the same, and their gradient by the embeddings of the others."""
    before, root = Decisions(), Embeddings()
    with torch.no_grad():
        clean = audited.scores(setting, clean_BS1, before)
    with torch.enable_grad():
        logits_BSV = audited.scores(setting, clean_BS1, root)
    allowed = 0.0
    if setting.experts == "grouped":
        with torch.no_grad(), experts_as(audited.model, "looped"):
            apart = audited.scores(setting, clean_BS1, Decisions()) - clean
        allowed = max(
            audited.model.config.num_layers * report.tolerance,
            GROWN_ROUNDING * float(apart.abs().max() / clean.abs().max()),
        )
    for probe in changes:
        kept_BS = probe.kept.to(audited.device)
        after = Decisions()
        with torch.no_grad():
            changed = audited.scores(setting, probe.stream, after)
        gap = (changed - clean).abs().amax(dim=-1).where(kept_BS, 0.0)
        relative = float(gap.max() / clean.abs().max())
        if setting.experts == "grouped" and relative > allowed and not before.same_as(after, kept_BS):
            # A rounding may tip a choice, and then all is another. Without rounding nothing may differ.
            relative = _looped_difference(audited, setting, clean_BS1, probe)
            report.tipped += relative == 0.0
        _judge_whole(report, "values", setting, relative, allowed, setting.experts)
        outputs = logits_BSV[kept_BS]
        outputs = (outputs * torch.randn_like(outputs)).sum()
        (grad_BSH,) = torch.autograd.grad(outputs, root.embeddings_BSH, retain_graph=True)
        stray = grad_BSH[~kept_BS].abs()
        _judge_whole(report, "gradient", setting, float(stray.max()) if stray.numel() else 0.0, 0.0, "gradient")


@torch.no_grad()
def _looped_difference(audited: Audited, setting: Setting, clean_BS1: Tensor, probe: Probe) -> float:
    with experts_as(audited.model, "looped"):
        before, after = (audited.scores(setting, each, Decisions()) for each in (clean_BS1, probe.stream))
    gap = (after - before).abs().amax(dim=-1).where(probe.kept.to(audited.device), 0.0)
    return float(gap.max() / before.abs().max())


def _judge_whole(report: Report, aspect: Aspect, setting: Setting, size: float, allowed: float, column: str) -> None:
    if size <= allowed:
        report.count(WHOLE_MODEL, column, size)
        return
    told = f"{size:.1e} where there must be no more than {allowed:.0e}, though no part leaks by itself ({setting})"
    where = "the logits" if aspect == "values" else "the embeddings"
    order = order_of(None, WHOLE_MODEL)
    report.leaks.append(Leak(None, WHOLE_MODEL, aspect, where, told, size, order, column))


def check_labels(audited: Audited, setting: Setting, clean_BS1: Tensor, report: Report) -> None:
    """What a position is to predict is the token after it, which it has not seen."""
    wrong = audited.batch(setting, clean_BS1, range(len(clean_BS1))).labels != clean_BS1[:, 1:]
    if wrong.any():
        row, position = divmod(int(wrong.flatten().long().argmax()), wrong.shape[1])
        told = f"the label of position {position} of row {row} is not the token after it ({setting})"
        report.leaks.append(
            Leak(None, LOSS, "values", "the batch's labels", told, 1.0, order_of(None, LOSS), setting.experts)
        )

"""The causality audit: change a token, and what must not feel it must not change, nor have a gradient by it.

Shapes: B batch, S sequence, H hidden.

For several lengths, in whole rows and with documents apart, in evaluation, and in training mode with random draws:
- Values. A clean pass is remembered at every part, a pass with some tokens changed is held against it. To the bit,
  except for what leaves the routed experts on their fast path, and attention where an <eod> came or went: there sums
  are taken in another order when the number of rows (or the length of a document's bucket) changes. In evaluation every
  position is changed once (sweep), in training a few.
- Gradients of what leaves each part, at tokens that must not feel the others, by everything at those others: exactly 0.
- Company. Rows in another order, or alone, give what they gave, within rounding.
- The whole model, without mending: logits, to the bit with looped experts, and their gradient by the embeddings. On the
  fast path the experts' rounding is amplified from layer to layer, so logits are held against that (comparisons.py).

Each part is judged given clean inputs (visitors.py), so a part that is named is one that leaks by itself.
Balance losses are sums over all tokens; they are made, but weigh nothing, and no output may depend on them.
Not run here: generation with a cache, whose tests hold it against whole rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch

from megatron_yuan.audit.arithmetic import ExpertsKind, as_in_training, experts_as, replaced
from megatron_yuan.audit.comparisons import (
    check_labels,
    compare_company,
    compare_values,
    compare_whole,
    watch_gradients,
)
from megatron_yuan.audit.forward import Audited
from megatron_yuan.audit.probes import ROWS, Setting, clean_stream, probes, sweep
from megatron_yuan.audit.report import Report
from megatron_yuan.audit.taps import Taps
from megatron_yuan.audit.visitors import Recorder
from megatron_yuan.config.schema import ModelConfig
from megatron_yuan.errors import ConfigError
from megatron_yuan.model.model import YuanModel

ROUNDING = 1e-6
"""Relative, where the order of a sum changes. Measured on a CPU: 7e-7 at an expert width of 1024, 1.4e-6 at 8192."""
KINDS: tuple[ExpertsKind, ...] = ("looped", "grouped")


def audit_causality(
    model: YuanModel,
    lengths: Sequence[int] | None = None,
    experts: Sequence[ExpertsKind] = KINDS,
    eod_id: int | None = None,
    seed: int = 0,
    progress: Callable[[Setting], None] = lambda setting: None,
) -> Report:
    """Audit a whole model in float32; it is left as it was.

    lengths: tokens of a row; unset, those that have set traps before: 1, 2, and as many as there are rows, heads,
    experts, and others. eod_id: unset, the model's, or any. ConfigError where the model is not one to audit.
    """
    config = model.config
    _check(model, lengths)
    taps = Taps(model)
    audited = Audited(model, taps, _eod(model, eod_id))
    report = Report(config.moe_router, tolerance(config))
    with ExitStack() as stack:
        stack.enter_context(replaced(model, "recompute_layers", 0))
        stack.enter_context(taps.opened())
        for setting in _settings(lengths or trap_lengths(config), experts):
            progress(setting)
            report.settings.append(setting)
            with experts_as(model, setting.experts), ExitStack() as mode:
                if setting.training:
                    mode.enter_context(as_in_training(model))
                _audit_setting(audited, setting, seed, report, everywhere=setting.experts == experts[-1])
    return report


def tolerance(config: ModelConfig) -> float:
    """The rounding to allow for: errors of a sum grow like the root of its length."""
    widest = max(config.ffn_hidden_size, config.hidden_size, config.attention_size)
    return ROUNDING * max(1.0, math.sqrt(widest / 1024))


def trap_lengths(config: ModelConfig) -> list[int]:
    """Lengths at which axes can be taken for each other, and some at which they cannot."""
    heads, experts = config.num_attention_heads, config.num_experts
    return sorted({1, 2, ROWS, heads, experts, experts + 1, 2 * experts, 16, 67})


def _settings(lengths: Sequence[int], experts: Sequence[ExpertsKind]) -> list[Setting]:
    longer = [length for length in lengths if length >= 6] or list(lengths)
    longer = sorted({longer[0], longer[-1]})  # documents need room, and are not about shapes
    made = [Setting(length, False, False, kind) for kind in experts for length in lengths]
    made += [Setting(length, True, False, kind) for kind in experts for length in longer]
    for isolated in (False, True):
        made += [Setting(longer[-1], isolated, True, kind) for kind in experts]
    return made


def _audit_setting(audited: Audited, setting: Setting, seed: int, report: Report, everywhere: bool) -> None:
    vocabulary = audited.model.config.vocab_size
    clean_BS1 = clean_stream(setting, vocabulary, audited.eod_id, seed)
    changes = probes(setting, clean_BS1, vocabulary, audited.eod_id)
    if setting.training and setting.isolated:
        # Attention's dropout is drawn for a document as a whole, so where documents end is felt before, as noise alone.
        changes = [probe for probe in changes if not probe.moves_documents]
    clean = Recorder()
    audited.taps.strange_rows.clear()
    before = len(report.leaks)
    with _running(setting, report), torch.no_grad():
        audited.run(setting, clean_BS1, clean)
    if report.failures and report.failures[-1].startswith(f"{setting}: "):
        return
    check_labels(audited, setting, clean_BS1, report)
    for probe in changes:
        with _running(setting, report):
            compare_values(audited, setting, clean, probe, report)
            watch_gradients(audited, setting, clean_BS1, probe, report)
    if everywhere and not setting.training:
        for probe in sweep(setting, clean_BS1, vocabulary, audited.eod_id, seed):
            with _running(setting, report):
                compare_values(audited, setting, clean, probe, report)
    for rows in ([2, 0, 1], [1]):
        with _running(setting, report):
            compare_company(audited, setting, clean, clean_BS1, rows, report)
    if len(report.leaks) == before:  # else it has nothing to add
        # Where an <eod> moves, attention rounds in every layer, and nothing is to the bit.
        steady = [probe for probe in changes if not probe.moves_documents]
        with _running(setting, report):
            compare_whole(audited, setting, clean_BS1, steady, report)


@contextmanager
def _running(setting: Setting, report: Report) -> Iterator[None]:
    """A part that takes only some shapes hides nothing at others: told as a failure, and on."""
    try:
        yield
    except RuntimeError as error:
        report.failures.append(f"{setting}: {str(error).splitlines()[0]}")


def _eod(model: YuanModel, asked: int | None) -> int:
    last = model.config.vocab_size - 1
    known = getattr(model, "eod_id", None)
    eod_id = next((each for each in (asked, known) if each is not None), last)  # without meaning, any will do
    if not 0 <= eod_id <= last:
        raise ConfigError(f"eod-id is {eod_id}, but must be a token of the vocabulary, 0 to {last}.")
    return eod_id


def _check(model: YuanModel, lengths: Sequence[int] | None) -> None:
    if not (model.is_first and model.is_last):
        raise ConfigError("this is one pipeline stage's part of a model; the audit takes a whole one.")
    dtype = model.final_norm.weight.dtype
    if dtype != torch.float32:
        raise ConfigError(f"the model is in {dtype}, but the audit compares to the bit in float32; open it with fp32.")
    if model.config.vocab_size < 3:
        raise ConfigError(f"vocab-size is {model.config.vocab_size}; the audit needs at least 3 tokens to exchange.")
    bad = next((name for name, weight in model.named_parameters() if not torch.isfinite(weight).all()), None)
    if bad is not None:
        raise ConfigError(f"{bad} is not finite, so that nothing can be said of what it does; load sound weights.")
    for length in lengths or ():
        if length < 1:
            raise ConfigError(f"seq-length is {length}, but must be 1 or more.")

"""What samples are made of, said at the start of a run: what FIM does to them, or which dialogues fill the rows."""

from __future__ import annotations

from collections.abc import Callable

from megatron_yuan.data.datasets import Sources
from megatron_yuan.data.dialogues import DialogueRows
from megatron_yuan.data.fim import FimSamples
from megatron_yuan.data.fim_figures import FimFigures
from megatron_yuan.data.packing import sets_of
from megatron_yuan.data.sample import SampleSource

MEASURED_SAMPLES, MEASURED_TOKENS = 256, 2**21  # a second or two of encoding


def describe_samples(sources: Sources, drawn: SampleSource, seen: SampleSource, say: Callable[[str], None]) -> None:
    """Say it. `drawn` are the samples as they come from the data, `seen` those that the model gets."""
    if isinstance(seen, FimSamples):
        say(str(_measure(seen)))
    elif any(source.entry.fim for source in sources.train):
        say("warning: the blend has sets with 'fim: true', but fim-rate is 0: none is rearranged")
    for name, each in zip(sources.train_names, sets_of(drawn), strict=True):
        if isinstance(each, DialogueRows):
            _describe_dialogues(name, each, say)


def _measure(samples: FimSamples) -> FimFigures:
    figures = FimFigures()
    for number in range(min(MEASURED_SAMPLES, len(samples))):
        figures += samples.rearranged(number)[1]
        if figures.tokens >= MEASURED_TOKENS:
            break
    return figures


def _describe_dialogues(name: str, rows: DialogueRows, say: Callable[[str], None]) -> None:
    count, size = rows.count, rows.plan.sequence_length + 1
    say(
        f"dialogues: {name}: {count.documents:,} in {rows.rows_an_epoch:,} rows an epoch, "
        f"{100 * count.tokens / (rows.rows_an_epoch * size):.4g}% full; loss on "
        f"{100 * count.answer_tokens / count.tokens:.3g}% of tokens"
    )
    for number, what in (
        (count.without_answer, "have no <sep>: nothing is learned of them"),
        (count.unanswered, "end in a question, which has no loss"),
        (count.without_eod, "do not end in <eod>, so nothing tells the model to stop (preprocess with --append-eod)"),
        (rows.longer, f"are longer than a row of {size:,} tokens: they are cut over several (--seq-length)"),
    ):
        if number:
            say(f"warning: {number:,} of {count.documents:,} documents of {name} {what}")

"""What a run will see of each set: a table at its start, and a warning where a set is repeated more than asked for."""

from __future__ import annotations

from collections.abc import Callable

from megatron_yuan.checkpoint.state import RunState
from megatron_yuan.config.schema import Config
from megatron_yuan.data.datasets import TRAIN, Sources, split_range
from megatron_yuan.data.dialogues import DialogueRows
from megatron_yuan.data.packing import Blend, sets_of
from megatron_yuan.training.run_data import RunData, number_of_samples

HEADER = "set", "language", "documents", "tokens", "weight", "share", "epochs in this run"


def describe_blend(
    config: Config, sources: Sources, data: RunData, position: RunState, say: Callable[[str], None]
) -> None:
    """Say the table, and the warnings.

    Documents and tokens are those of the part that is trained on; the share is of the run's samples, and epochs are how
    often the run sees that part.
    """
    samples = number_of_samples(config, position)
    counts = data.train.counts if isinstance(data.train, Blend) else [samples]
    sets = sets_of(data.train)
    weights = sum(source.weight for source in sources.train)
    epochs: list[float] = []
    rows: list[tuple[str, ...]] = [HEADER]
    for name, source, count, drawn in zip(sources.train_names, sources.train, counts, sets, strict=True):
        first, end, tokens = split_range(source, sources.train_split, TRAIN)
        an_epoch = drawn.rows_an_epoch if isinstance(drawn, DialogueRows) else tokens / config.data.seq_length
        epochs.append(count / an_epoch)
        rows.append(
            (
                name,
                source.entry.language or "-",
                f"{end - first:,}",
                f"{tokens:,}",
                f"{source.weight / weights:.4f}",
                f"{100 * count / max(1, sum(counts)):.2f}%",
                f"{epochs[-1]:.3g}" if epochs[-1] < 1000 else f"{epochs[-1]:,.0f}",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True)))
        say("data: " + "  ".join(cells).rstrip())
    for name, source, seen in zip(sources.train_names, sources.train, epochs, strict=True):
        most = source.entry.max_epochs or config.data.max_epochs
        if seen > most:
            own = "max_epochs" if source.entry.max_epochs else "--max-epochs"
            say(
                f"warning: the run sees {name} {seen:,.3g} times, more than {own} {most:g}: give it a smaller weight, "
                "more text, or the run fewer steps"
            )

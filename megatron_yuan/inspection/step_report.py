"""A step's samples as lines for people, in colour where there is a terminal, and as JSON."""

from __future__ import annotations

from typing import Any

import numpy as np
from rich.text import Text

from megatron_yuan.inspection.documents import one_line
from megatron_yuan.inspection.spans import spans_of, text_of
from megatron_yuan.inspection.step import Row, Step

COLOURS = {"": "green", "prefix": "cyan", "middle": "yellow", "suffix": "magenta", "mark": "bold red"}
LEGEND = (
    "columns: tokens of the row, their positions as inputs, document in the row, whether they are learned, part in "
    "FIM, text (quoted, line breaks as \\n)"
)


def step_lines(step: Step, most: int | None = None) -> list[Text]:
    """The first `most` rows of the step; None: all."""
    config = step.session.config
    samples = [row.sample for row in step.rows]
    lines = [
        Text(
            f"step {step.number} of {config.training.train_iters}: {len(samples)} samples, {_range(samples)}; "
            f"{step.remark}",
            "bold",
        ),
        Text(LEGEND, "dim"),
    ]
    pieces = None if step.tokenizer is None else step.tokenizer.piece_bytes()
    for row in step.rows[:most]:
        lines += _row_lines(row, step.eod_id, pieces)
    left = len(step.rows) - len(step.rows[:most])
    return [*lines, Text(f"and {left} more samples (--limit)")] if left else lines


def step_json(step: Step) -> dict[str, Any]:
    """All of it: `tokens` are S + 1 ids; `loss_mask` and `position_ids` have S, of labels and of inputs."""
    return {
        "step": step.number,
        "remark": step.remark,
        "samples": [
            {
                "sample": row.sample,
                "set": row.set_name,
                "tokens": row.tokens.tolist(),
                "loss_mask": row.loss[1:].astype(int).tolist(),
                "position_ids": row.positions.tolist(),
                "spans": [span._asdict() for span in spans_of(row, step.eod_id)],
            }
            for row in step.rows
        ],
    }


def _row_lines(row: Row, eod_id: int, pieces: list[bytes] | None) -> list[Text]:
    spans = spans_of(row, eod_id)
    kinds = {True: "learned", False: "-"}
    fim = f", {len(row.cuts)} rearranged" if row.cuts else ""
    title = (
        f"sample {row.sample}, set {row.set_name}: loss on {int(row.loss.sum())} of {len(row.loss) - 1} labels, "
        f"{spans[-1].document + 1} documents or parts of them{fim}"
    )
    lines = [Text(title, "bold blue")]
    for span in spans:
        ids = row.tokens[span.first : span.end].tolist()
        alike = len(ids) > 1 and len(set(ids)) == 1  # padding
        text = one_line(text_of(ids[:1] if alike else ids, pieces))
        text = f'"{text}" x {len(ids)}' if alike else f'"{text}"'
        colour = COLOURS[span.part] if span.loss else f"dim {COLOURS[span.part]}" if span.part else "dim"
        line = Text(
            f"  {_between(span.first, span.end):>11}  @{_positions(row.positions, span.first, span.end):<11}  "
            f"doc {span.document:<3} {kinds[span.loss]:<7}  {span.part or '-':<6}  "
        )
        lines.append(line.append(text, colour))
    return lines


def _positions(positions: np.ndarray, first: int, end: int) -> str:
    some = positions[first:end]
    if not len(some):
        return "label only"
    runs = np.split(some, np.flatnonzero(np.diff(some) != 1) + 1)
    return ",".join(_between(int(run[0]), int(run[-1]) + 1) for run in runs)


def _between(first: int, end: int) -> str:
    return str(first) if end == first + 1 else f"{first}-{end - 1}"


def _range(samples: list[int]) -> str:
    runs = np.split(np.array(samples), np.flatnonzero(np.diff(samples) != 1) + 1)
    return " ".join(_between(int(run[0]), int(run[-1]) + 1) for run in runs)

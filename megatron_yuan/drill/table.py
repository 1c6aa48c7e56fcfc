"""What a drill has shown: a table by kind of fault, and JSON of every fault."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

from megatron_yuan.drill.drill import Played
from megatron_yuan.drill.trial import Try

_HEAD = (
    "fault",
    "tries",
    "ended or resumed by itself",
    "no durable checkpoint lost",
    "steps lost, mean",
    "worst",
    "seconds to end, worst",
    "bit-identical after",
)


def table(played: Sequence[Played]) -> str:
    """Markdown, a line for each kind and one for all."""
    by_kind: dict[str, list[Try]] = {}
    for each in played:
        if each.skipped is None:
            by_kind.setdefault(each.scene.kind.name, []).extend(each.tries)
    rows = [_HEAD, *(_row(kind, tries) for kind, tries in by_kind.items())]
    rows.append(_row("all", [each for tries in by_kind.values() for each in tries]))
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "| " + " | ".join("-" * width for width in widths) + " |")
    skipped = {each.scene.kind.name: each.skipped for each in played if each.skipped}
    return "\n".join([*lines, *(f"\nnot tried: {kind}: {reason}" for kind, reason in skipped.items())])


def _row(kind: str, tries: Sequence[Try]) -> tuple[str, ...]:
    lost = [each.lost_steps for each in tries if each.lost_steps is not None]
    ends = [each.end_seconds for each in tries if each.end_seconds is not None]
    judged = [each.identical for each in tries if each.identical is not None]
    return (
        kind,
        str(len(tries)),
        f"{sum(each.by_itself for each in tries)}/{len(tries)}",
        f"{sum(each.survived for each in tries)}/{len(tries)}",
        f"{sum(lost) / len(lost):.1f}" if lost else "-",
        str(max(lost)) if lost else "-",
        f"{max(ends):.1f}" if ends else "-",
        f"{sum(judged)}/{len(tries)}",
    )


def failures(played: Sequence[Played]) -> list[str]:
    """A line for each fault that was not survived as promised, with what replays it."""
    return [
        f"scene {each.scene.index}, {each.scene.kind.name} on {each.scene.layout}, {one.detail}: "
        f"{'; '.join(one.problems) or 'see the table'} (replay: --seed {each.scene.seed} --only {each.scene.index}; "
        f"traces: {each.folder})"
        for each in played
        for one in each.tries
        if not one.passed
    ]


def as_json(played: Sequence[Played]) -> str:
    """Everything, for programs."""
    return (
        json.dumps(
            [
                {
                    "scene": each.scene.index,
                    "seed": each.scene.seed,
                    "kind": each.scene.kind.name,
                    "layout": str(each.scene.layout),
                    "skipped": each.skipped,
                    "seconds": round(each.seconds, 1),
                    "folder": None if each.folder is None else str(each.folder),
                    "tries": [{**dataclasses.asdict(one), "passed": one.passed} for one in each.tries],
                }
                for each in played
            ],
            indent=1,
        )
        + "\n"
    )

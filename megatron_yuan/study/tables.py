"""What a study shows, in words and figures: tables like the M32 paper's Tables 1 and 2, and JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from megatron_yuan.study.findings import Difference, Finding, compare

HEAD = "| {} | parameters | active | held-out loss | spread over seeds | beside the first | ms a step | max/mean load |"
RULE = "| --- | ---: | ---: | ---: | ---: | --- | ---: | ---: |"


def tables(findings: Sequence[Finding]) -> str:
    """Markdown: the routers at each number of experts, then the numbers of experts of each router."""
    parts = []
    for experts in sorted({each.experts for each in findings}):
        rows = [each for each in findings if each.experts == experts]
        if len(rows) > 1:
            parts.append(_table(f"router, {experts} experts", rows, [each.arrangement for each in rows]))
    for arrangement in dict.fromkeys(each.arrangement for each in findings):
        rows = [each for each in findings if each.arrangement == arrangement]
        if len(rows) > 1:
            parts.append(_table(f"experts, {arrangement} router", rows, [str(each.experts) for each in rows]))
    return "\n".join(parts or [_table("router", findings, [each.arrangement for each in findings])])


def as_json(findings: Sequence[Finding]) -> str:
    """Every figure."""
    rows = [{**asdict(each), "loss": each.loss, "spread": each.spread} for each in findings]
    return json.dumps({"findings": rows}, indent=1) + "\n"


def _table(title: str, rows: Sequence[Finding], names: Sequence[str]) -> str:
    lines = [HEAD.format(title), RULE]
    for name, row in zip(names, rows, strict=True):
        cells = [
            name,
            f"{row.parameters:,}",
            f"{row.active_parameters:,}",
            f"{row.loss:.4f}",
            f"{row.spread:.4f}" if len(row.losses) > 1 else "one seed",
            in_words(compare(row, rows[0])),
            f"{row.milliseconds:.0f}",
            f"{row.worst_imbalance:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    seeds, tokens = sorted({len(row.losses) for row in rows}), sorted({row.train_tokens for row in rows})
    lines.append(
        f"\n{_range(seeds)} seeds, {_range(tokens)} training tokens a run; loss in nats a token, mean over the "
        "validation sets and seeds; spread: highest less lowest.\n"
    )
    return "\n".join(lines)


def in_words(difference: Difference | None) -> str:
    """A relative difference, and whether it is one."""
    if difference is None:
        return ""
    return f"{difference.relative:+.2%}" + ("" if difference.shown else ", no difference shown")


def _range(values: Sequence[int]) -> str:
    return f"{values[0]:,}" if len(values) == 1 else f"{values[0]:,} to {values[-1]:,}"

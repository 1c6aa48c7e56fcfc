"""The losses of a study as a picture: a mark for each seed, a bar for the mean, one row an arrangement."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from megatron_yuan.report.curves import COLOURS, MARKERS
from megatron_yuan.study.findings import Finding, row_name


def draw_study(findings: Sequence[Finding], path: Path) -> Path:
    """Write the picture to `path`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.5, 1.4 + 0.42 * len(findings)), layout="constrained")
    axes = figure.subplots()
    arrangements = list(dict.fromkeys(each.arrangement for each in findings))
    for y, each in enumerate(findings):
        i = arrangements.index(each.arrangement) % len(COLOURS)
        values = list(each.losses.values())
        axes.plot(values, [y] * len(values), MARKERS[i], color=COLOURS[i], markersize=6, alpha=0.75)
        axes.plot([each.loss] * 2, [y - 0.3, y + 0.3], color="black", linewidth=1.5)
    axes.set_yticks(range(len(findings)), [row_name(each.arrangement, each.experts) for each in findings])
    axes.set_ylim(len(findings) - 0.5, -0.5)
    axes.set_xlabel("held-out loss, nats a token (mark: a seed; bar: their mean)")
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    return path

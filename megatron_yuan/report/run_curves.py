"""One figure of several runs over their steps, a colour each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from megatron_yuan.report.curves import (
    COLOURS,
    MARKERS,
    Floats,
    running_mean,
    short_number,
    shortened,
    smoothing_window,
    step_axis,
    thinned,
)
from megatron_yuan.report.named_run import NamedRun
from megatron_yuan.report.series import losses_of, steps_of, values_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LINES = ("-", "--", ":", "-.")  # more runs than colours: the next kind of line
FAINT_BELOW = 4  # runs whose single steps can be shown without hiding each other


@dataclass(frozen=True)
class Quantity:
    """A number of every step."""

    field: str
    """Its name in a step's record."""
    label: str
    """Of the y axis, with its unit."""
    factor: float = 1.0
    smooth: bool = True
    from_zero: bool = False


def curves_figure(runs: Sequence[NamedRun], quantity: Quantity) -> Figure:
    """`quantity` of every run; where it is smoothed, single steps are faint behind."""
    figure, axes = _empty(runs)
    low, high = np.inf, 0.0
    for i, run in enumerate(runs):
        values = quantity.factor * values_of(run.metrics.steps, quantity.field)
        _draw(axes, run, values, i, quantity.smooth, faint=len(runs) < FAINT_BELOW)
        known = values[np.isfinite(values) & (values > 0)]
        if len(known):
            low, high = min(low, float(np.median(known))), max(high, float(known.max()))
    if high >= 1e4:
        axes.yaxis.set_major_formatter(short_number)
    if quantity.from_zero:
        axes.set_ylim(bottom=0)
    elif quantity.smooth and high > 20 * low:
        axes.set_yscale("log")  # a spike would flatten all else
    axes.set_ylabel(quantity.label)
    _add_legend(figure)
    return figure


def losses_figure(runs: Sequence[NamedRun]) -> Figure:
    """Training loss of every run, and the mean of its validation sets."""
    figure, axes = _empty(runs)
    for i, run in enumerate(runs):
        _draw(axes, run, values_of(run.metrics.steps, "loss"), i, smooth=True, faint=len(runs) < FAINT_BELOW)
        evaluations = [record for record in run.metrics.evaluations if losses_of(record)]
        means = [np.mean(list(losses_of(record).values())) for record in evaluations]
        if evaluations:
            colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
            axes.plot(steps_of(evaluations), means, marker, color=colour, markersize=6, markeredgecolor="black")
    if any(run.metrics.evaluations for run in runs):
        axes.plot([], [], "o", color="white", markeredgecolor="black", label="marks: validation, mean of its sets")
    axes.set_ylabel("loss of a token (nats)")
    _add_legend(figure)
    return figure


def _empty(runs: Sequence[NamedRun]) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes = figure.add_subplot()
    last = max(record["step"] for run in runs for record in (*run.metrics.steps, *run.metrics.evaluations))
    step_axis(axes, last)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _draw(axes: Axes, run: NamedRun, values: Floats, i: int, smooth: bool, faint: bool) -> None:
    steps = steps_of(run.metrics.steps)
    drawn = thinned(len(steps))
    colour = COLOURS[i % len(COLOURS)]
    line = LINES[i // len(COLOURS) % len(LINES)]
    few = len(steps) < 30
    finite = np.where(np.isfinite(values), values, np.nan)
    if smooth and not few:
        if faint:
            axes.plot(steps[drawn], finite[drawn], color=colour, alpha=0.25, linewidth=0.8)
        finite = running_mean(finite, smoothing_window(len(steps)))
    marker = "." if few else None
    axes.plot(steps[drawn], finite[drawn], line, color=colour, linewidth=1.8, marker=marker, label=shortened(run.name))


def _add_legend(figure: Figure) -> None:
    """Names of the runs below the figure, where no curve can be under them."""
    labels = [str(label) for label in figure.axes[0].get_legend_handles_labels()[1]]
    columns = max(1, min(4, len(labels), 90 // (max(map(len, labels)) + 7)))
    figure.legend(loc="outside lower center", ncols=columns, frameon=False)

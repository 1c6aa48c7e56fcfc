"""The loss over the run: every step, the running mean, each set of the blend, and each validation set."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from megatron_yuan.report.curves import (
    COLOURS,
    GREY,
    MARKERS,
    Floats,
    running_mean,
    shortened,
    smoothing_window,
    step_axis,
    thinned,
)
from megatron_yuan.report.metrics import Metrics
from megatron_yuan.report.series import losses_of, steps_of, values_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_SETS = 6  # of the blend, whose curves can still be told apart
LEGEND_CHARACTERS = 110  # that fit side by side


def loss_figure(metrics: Metrics) -> Figure:
    """Draw a run of at least one step."""
    from matplotlib.figure import Figure

    steps, losses = steps_of(metrics.steps), values_of(metrics.steps, "loss")
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.add_subplot()
    _draw_training(axes, steps, losses)
    names = _set_names(metrics)
    _draw_training_sets(axes, metrics.steps, names)
    _draw_validation(axes, metrics.evaluations, names)
    step_axis(axes, max(steps[-1], *(record["step"] for record in metrics.evaluations), 0))
    axes.set_ylabel("loss of a token (nats)")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    # Below the picture: inside, some run's curve would always be under it.
    labels = [str(label) for label in axes.get_legend_handles_labels()[1]]
    columns = max(1, min(4, len(labels), LEGEND_CHARACTERS // (max(map(len, labels)) + 7)))
    figure.legend(loc="outside lower center", ncols=columns, frameon=False)
    _add_tokens(axes, metrics)
    return figure


def _draw_training(axes: Axes, steps: Floats, losses: Floats) -> None:
    finite = np.isfinite(losses)
    drawn = thinned(len(steps))
    few = len(steps) < 30
    axes.plot(
        steps[drawn],
        np.where(finite, losses, np.nan)[drawn],
        color=COLOURS[0],
        alpha=1.0 if few else 0.35,
        linewidth=1.0,
        marker="." if few else None,
        label="training",
    )
    if not few:
        window = smoothing_window(len(steps))
        mean = running_mean(losses, window)[drawn]
        axes.plot(steps[drawn], mean, color=COLOURS[0], linewidth=2.0, label=f"training, mean of {window} steps")
    if not finite.all():
        lost = steps[~finite]
        label = f"loss not finite ({len(lost)} step{'s' if len(lost) > 1 else ''})"
        # At the lower edge whatever the losses are: x in steps, y in parts of the axes.
        where = axes.get_xaxis_transform()
        axes.plot(lost, np.full(len(lost), 0.02), "x", color="black", transform=where, label=label)


def _set_names(metrics: Metrics) -> list[str]:
    """Sets of the blend, then sets that are only validated on: a name has one colour."""
    records = (*metrics.steps, *metrics.evaluations)
    return list(dict.fromkeys(name for record in records for name in losses_of(record)))


def _draw_training_sets(axes: Axes, steps: list[dict[str, Any]], names: list[str]) -> None:
    trained = {name for record in steps for name in losses_of(record)}
    if not 1 < len(trained) <= MOST_SETS:
        return
    drawn = thinned(len(steps))
    at = steps_of(steps)[drawn]
    for i, name in enumerate(names):
        if name in trained:
            losses = np.array([losses_of(record).get(name, np.nan) for record in steps], dtype=np.float64)
            mean = running_mean(losses, smoothing_window(len(steps)))[drawn]
            colour = COLOURS[1 + i % (len(COLOURS) - 1)]
            axes.plot(at, mean, color=colour, linewidth=1.0, linestyle=":", label=f"training, {shortened(name)}")


def _draw_validation(axes: Axes, evaluations: list[dict[str, Any]], names: list[str]) -> None:
    for i, name in enumerate(names):
        points = [(record["step"], losses_of(record)[name]) for record in evaluations if name in losses_of(record)]
        if not points:
            continue
        axes.plot(
            *zip(*points, strict=True),
            color=COLOURS[1 + i % (len(COLOURS) - 1)],
            marker=MARKERS[i % len(MARKERS)],
            markersize=5,
            linewidth=1.5,
            linestyle="-" if i < len(MARKERS) else "--",
            label=f"validation, {shortened(name)}",
        )


def _add_tokens(axes: Axes, metrics: Metrics) -> None:
    """A second axis above: tokens seen, by the mean tokens of a step."""
    tokens = values_of(metrics.steps, "tokens")
    mean = float(np.nanmean(tokens)) if np.isfinite(tokens).any() else 0.0
    if not mean > 0:
        return
    top = axes.get_xlim()[1] * mean
    unit, name = next(
        (u, n) for u, n in ((1e9, "billions"), (1e6, "millions"), (1e3, "thousands"), (0, "")) if top >= u
    )
    unit = unit or 1.0

    def tokens_of(step: Any) -> Any:
        return step * (mean / unit)

    def step_of(tokens: Any) -> Any:
        return tokens * (unit / mean)

    upper = axes.secondary_xaxis("top", functions=(tokens_of, step_of))
    upper.set_xlabel(f"tokens with loss ({name})" if name else "tokens with loss", color=GREY)
    upper.tick_params(colors=GREY)

"""The experts' load: who gets the tokens of late, and how even it has been. L layers, E experts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from megatron_yuan.report.curves import Floats, ticks
from megatron_yuan.report.expert_figures import relative_load
from megatron_yuan.report.layer_curves import draw_layer_curves
from megatron_yuan.report.metrics import Metrics
from megatron_yuan.report.series import layers_of, recent_steps, tables_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def expert_load_figure(metrics: Metrics) -> Figure:
    """Draw a run in which at least one load was counted."""
    from matplotlib.figure import Figure

    load_LE, first, last = recent_load(metrics)
    width, height = _size(load_LE)
    figure = Figure(figsize=(width + 6.5, height), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(width, 6.5))
    _draw_heatmap(figure, left, load_LE, first, last)
    imbalance = layers_of(metrics, "load_max_over_mean")
    if imbalance is not None:
        draw_layer_curves(figure, right, *imbalance, balanced=1.0)
        right.set_ylabel("load, max / mean (dotted: balanced)")
    return figure


def load_figure(load: ArrayLike, first: int, last: int, highest: float | None = None) -> Figure:
    """The heatmap alone, of a table of loads [L, E] summed over the steps `first` to `last`.

    `highest`: the load over mean that ends the scale of colours, for heatmaps that stand side by side.
    """
    from matplotlib.figure import Figure

    load_LE = _over_mean(load)
    figure = Figure(figsize=_size(load_LE), layout="constrained")
    _draw_heatmap(figure, figure.subplots(), load_LE, first, last, highest)
    return figure


def highest_load(load: ArrayLike) -> float:
    """Where a scale of loads over mean ends: above all but the most extreme half per cent, and at 2 or more."""
    return max(float(np.quantile(_over_mean(load), 0.995)), 2.0)


def recent_load(metrics: Metrics) -> tuple[Floats, int, int]:
    """([L][E] load over its layer's mean, first step, last step) in the last tenth of the run, 10 to 100 steps."""
    (recent,) = tables_of(metrics, "expert_load", most=1, recent_steps=recent_steps(metrics))
    return _over_mean(recent.sums), recent.first, recent.last


def _over_mean(load: ArrayLike) -> Floats:
    return np.nan_to_num(relative_load(load))


def _size(load_LE: Floats) -> tuple[float, float]:
    """Inches of the heatmap."""
    layers, experts = load_LE.shape
    return float(np.clip(0.28 * experts, 3.5, 11)) + 2.0, float(np.clip(0.26 * layers + 2.0, 4.0, 12))


def _draw_heatmap(
    figure: Figure, axes: Axes, load_LE: Floats, first: int, last: int, highest: float | None = None
) -> None:
    layers, experts = load_LE.shape
    top = highest or highest_load(load_LE)
    over = "max" if load_LE.max() > top else "neither"
    image = axes.imshow(load_LE, cmap="cividis", vmin=0, vmax=top, aspect="auto", interpolation="nearest")
    span = f"step {last}" if first == last else f"steps {first} to {last}"
    axes.set_title(f"load over the layer's mean, {span}", fontsize=11)
    axes.set_xlabel("expert" + (" (x: no token)" if (load_LE == 0).any() else ""))
    axes.set_ylabel("layer")
    axes.set_xticks(ticks(experts, 16))
    axes.set_yticks(ticks(layers, 24))
    bar = figure.colorbar(image, ax=axes, label="load / mean (line: 1.0 = balanced)", pad=0.02, extend=over)
    bar.ax.axhline(1.0, color="white", linewidth=2)
    bar.ax.axhline(1.0, color="black", linewidth=0.8)
    dead = np.argwhere(load_LE == 0)
    axes.plot(dead[:, 1], dead[:, 0], "x", color="white", markersize=5)
    if experts <= 8 and layers <= 16:
        for (layer, expert), value in np.ndenumerate(load_LE):
            if value > 0:
                colour = "black" if value > 0.55 * top else "white"
                axes.text(expert, layer, f"{value:.2f}", ha="center", va="center", fontsize=8, color=colour)

"""A small picture for each layer, on one scale of colours: the load over time, and which experts share tokens.

L layers, E experts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from megatron_yuan.report.curves import Floats, short_number, ticks
from megatron_yuan.report.expert_figures import partners, relative_load
from megatron_yuan.report.series import Tables

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BAR_ASPECT = 30  # height over width of the scales of colours
MOST_LAYERS = 48  # whose pictures can still be read; of more, every second, third ... is drawn


def load_scale(tables: Sequence[Tables]) -> float:
    """The upper end of a scale of load over mean: all but the most extreme half per cent, and at least 2."""
    relative = np.concatenate([relative_load(table.sums).ravel() for table in tables] or [np.empty(0)])
    known = relative[np.isfinite(relative)]
    return max(2.0, float(np.quantile(known, 0.995))) if len(known) else 2.0


def load_over_time_figure(tables: Sequence[Tables], highest: float) -> Figure:
    """Loads over their layer's mean: steps to the right, experts upwards. `highest` ends the scale of colours."""
    from matplotlib.ticker import MaxNLocator

    edges = np.array([*(table.first - 0.5 for table in tables), tables[-1].last + 0.5])
    relative_LEX = np.stack([relative_load(table.sums) for table in tables], axis=-1)
    experts = relative_LEX.shape[1]

    def draw(axes: Axes, layer: int) -> Any:
        shown_EX = np.ma.masked_where(~(relative_LEX[layer] > 0), relative_LEX[layer])
        mesh = axes.pcolormesh(edges, np.arange(experts + 1) - 0.5, shown_EX, cmap="cividis", vmin=0, vmax=highest)
        axes.xaxis.set_major_locator(MaxNLocator(3, integer=True, min_n_ticks=1))
        axes.xaxis.set_major_formatter(short_number)
        axes.set_yticks(ticks(experts, 8))
        return mesh

    figure, mesh = _grid(len(relative_LEX), draw, "step", "expert")
    over = bool((relative_LEX > highest).any())
    bar = figure.colorbar(mesh, ax=figure.axes, pad=0.01, aspect=BAR_ASPECT, extend="max" if over else "neither")
    bar.set_label("load / mean of the layer\n(line: 1.0 = balanced; white: no token)")
    _mark(bar.ax, 1.0)
    return figure


def coactivation_figure(coactivation_LEE: Floats) -> Figure:
    """Of the tokens of an expert (row), how many visit another (column) too."""
    percent_LEE = 100 * partners(coactivation_LEE)
    experts = percent_LEE.shape[-1]
    known = percent_LEE[np.isfinite(percent_LEE)]
    # With K choices a row adds up to K - 1.
    rows = np.nansum(percent_LEE, axis=-1)[np.isfinite(percent_LEE).any(axis=-1)]
    balanced = float(rows.mean()) / max(1, experts - 1) if len(rows) else 0.0
    highest = max(1.0, 2 * balanced, float(np.quantile(known, 0.995)) if len(known) else 0.0)
    highest = min(highest, 100.0)

    def draw(axes: Axes, layer: int) -> Any:
        axes.set_facecolor("#d0d0d0")
        image = axes.imshow(percent_LEE[layer], cmap="cividis", vmin=0, vmax=highest, interpolation="nearest")
        axes.set_xticks(ticks(experts, 8))
        axes.set_yticks(ticks(experts, 8))
        return image

    figure, image = _grid(len(percent_LEE), draw, "and this expert too", "of this expert's tokens", square=True)
    over = bool(len(known)) and known.max() > highest
    bar = figure.colorbar(image, ax=figure.axes, pad=0.01, aspect=BAR_ASPECT, extend="max" if over else "neither")
    bar.set_label(f"% of the row expert's tokens\n(line: balanced, {balanced:.3g}%; grey: itself, or no token)")
    _mark(bar.ax, balanced)
    return figure


def _grid(layers: int, draw: Any, xlabel: str, ylabel: str, square: bool = False) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    shown = ticks(layers, MOST_LAYERS)
    columns = min(6 if layers > 9 else 3, math.ceil(math.sqrt(len(shown))))
    rows = math.ceil(len(shown) / columns)
    width = 5.2 if columns == 1 else 3.6 if columns <= 3 else 2.0
    height = width if square else 0.75 * width
    figure = Figure(figsize=(columns * width + 1.4, rows * height + 0.7), layout="constrained")
    drawn = None
    for i, layer in enumerate(shown):
        axes = figure.add_subplot(rows, columns, i + 1)
        drawn = draw(axes, layer)
        axes.set_title(f"layer {layer}", fontsize=9, pad=3)
        axes.tick_params(labelsize=8)
        # Numbers on the outer edges alone: all the small pictures have the same axes.
        axes.tick_params(labelleft=i % columns == 0, labelbottom=i + columns >= len(shown))
    figure.supxlabel(xlabel, fontsize=10)
    figure.supylabel(ylabel, fontsize=10)
    return figure, drawn


def _mark(axes: Axes, value: float) -> None:
    axes.axhline(value, color="white", linewidth=2)
    axes.axhline(value, color="black", linewidth=0.8)

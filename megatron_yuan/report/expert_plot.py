"""The experts' load: who gets the tokens of late, and how even it has been. L layers, E experts, R records."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from megatron_yuan.report.curves import COLOURS, Floats, running_mean, smoothing_window, step_axis, thinned
from megatron_yuan.report.metrics import Metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_NAMED_LAYERS = len(COLOURS)


def expert_load_figure(metrics: Metrics) -> Figure:
    """Draw a run in which at least one load was counted."""
    from matplotlib.figure import Figure

    share_LE, first, last = recent_share(metrics)
    layers, experts = share_LE.shape
    width = float(np.clip(0.28 * experts, 3.5, 11))
    height = float(np.clip(0.26 * layers + 2.0, 4.0, 12))
    figure = Figure(figsize=(width + 2.0 + 6.5, height), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(width + 2.0, 6.5))
    _draw_heatmap(figure, left, share_LE)
    span = f"step {last}" if first == last else f"steps {first} to {last}"
    left.set_title(f"share of a layer's tokens, {span}", fontsize=11)
    _draw_imbalance(figure, right, metrics)
    return figure


def recent_share(metrics: Metrics) -> tuple[Floats, int, int]:
    """([L][E] share of each layer's tokens, first step, last step) in the last tenth of the run, 10 to 100 steps."""
    recent = min(100, max(10, len(metrics.steps) // 10))
    tables: list[Any] = []
    counted = 0
    first = last = 0
    for record in reversed(metrics.steps):
        if not record.get("expert_load"):
            continue
        if counted >= recent:
            break
        tables.append(record["expert_load"])
        counted += record.get("expert_load_steps", 1)
        last = last or record["step"]
        first = record["step"] - record.get("expert_load_steps", 1) + 1
    load_LE = np.sum(np.array(tables, dtype=np.float64), axis=0)
    return load_LE / np.maximum(load_LE.sum(axis=1, keepdims=True), 1.0), first, last


def _draw_heatmap(figure: Figure, axes: Axes, share_LE: Floats) -> None:
    layers, experts = share_LE.shape
    percent_LE = 100 * share_LE
    highest = max(float(percent_LE.max()), 200 / experts)
    image = axes.imshow(percent_LE, cmap="cividis", vmin=0, vmax=highest, aspect="auto", interpolation="nearest")
    axes.set_xlabel("expert" + (" (x: no token)" if (share_LE == 0).any() else ""))
    axes.set_ylabel("layer")
    axes.set_xticks(_ticks(experts, 16))
    axes.set_yticks(_ticks(layers, 24))
    bar = figure.colorbar(image, ax=axes, label=f"% of tokens (line: balanced, {100 / experts:.3g}%)", pad=0.02)
    bar.ax.axhline(100 / experts, color="white", linewidth=2)
    bar.ax.axhline(100 / experts, color="black", linewidth=0.8)
    dead = np.argwhere(share_LE == 0)
    axes.plot(dead[:, 1], dead[:, 0], "x", color="white", markersize=5)
    if experts <= 8 and layers <= 16:
        for (layer, expert), value in np.ndenumerate(percent_LE):
            if value > 0:
                colour = "black" if value > 0.55 * highest else "white"
                axes.text(expert, layer, f"{value:.1f}", ha="center", va="center", fontsize=8, color=colour)


def _draw_imbalance(figure: Figure, axes: Axes, metrics: Metrics) -> None:
    """Max over mean of each layer over time: a named colour each for a few layers, a scale of colours for many."""
    import matplotlib
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    counted = [record for record in metrics.steps if record.get("load_max_over_mean")]
    steps = np.array([record["step"] for record in counted], dtype=np.float64)
    ratio_RL = np.array([record["load_max_over_mean"] for record in counted], dtype=np.float64)
    window = smoothing_window(len(steps)) if len(steps) >= 30 else 1
    drawn = thinned(len(steps))
    mean_RL = running_mean(ratio_RL, window)[drawn]
    layers = ratio_RL.shape[1]
    few = layers <= MOST_NAMED_LAYERS
    scale = ScalarMappable(Normalize(0, max(1, layers - 1)), matplotlib.colormaps["viridis"])
    for layer in range(layers):
        colour = COLOURS[layer] if few else scale.cmap(layer / (layers - 1))
        marker = "." if len(steps) < 30 else None
        axes.plot(steps[drawn], mean_RL[:, layer], color=colour, linewidth=1.4, marker=marker, label=f"layer {layer}")
    axes.axhline(1.0, color="black", linestyle=":", linewidth=1.2)
    axes.set_ylim(bottom=min(0.95, axes.get_ylim()[0]))
    step_axis(axes, steps[-1])
    axes.set_ylabel("load, max / mean (dotted: balanced)")
    averaged = f", mean of {window} steps" if window > 1 else ""
    axes.set_title(f"imbalance of each layer{averaged}", fontsize=11)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if few:
        axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    else:
        figure.colorbar(scale, ax=axes, label="layer", pad=0.02, ticks=_ticks(layers, 12))


def _ticks(length: int, most: int) -> list[int]:
    return list(range(0, length, -(-length // most)))

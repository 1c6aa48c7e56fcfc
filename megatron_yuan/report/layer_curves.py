"""A figure of every layer over the run: a named colour each for a few layers, a scale of colours for many."""

from __future__ import annotations

from typing import TYPE_CHECKING

from megatron_yuan.report.curves import COLOURS, Floats, running_mean, smoothing_window, step_axis, thinned, ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_NAMED_LAYERS = len(COLOURS)


def layer_curves_figure(steps: Floats, values_RL: Floats, label: str, balanced: float | None = None) -> Figure:
    """A figure of its own; `label` names the y axis."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes = figure.add_subplot()
    draw_layer_curves(figure, axes, steps, values_RL, balanced)
    axes.set_ylabel(label)
    return figure


def draw_layer_curves(
    figure: Figure, axes: Axes, steps: Floats, values_RL: Floats, balanced: float | None = None
) -> None:
    """Draw `values_RL` [R records, L layers]; a dotted line where it is `balanced`. The caller names the y axis."""
    import matplotlib
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    window = smoothing_window(len(steps)) if len(steps) >= 30 else 1
    drawn = thinned(len(steps))
    mean_RL = running_mean(values_RL, window)[drawn]
    layers = values_RL.shape[1]
    few = layers <= MOST_NAMED_LAYERS
    scale = ScalarMappable(Normalize(0, max(1, layers - 1)), matplotlib.colormaps["viridis"])
    for layer in range(layers):
        colour = COLOURS[layer] if few else scale.cmap(layer / (layers - 1))
        marker = "." if len(steps) < 30 else None
        axes.plot(steps[drawn], mean_RL[:, layer], color=colour, linewidth=1.4, marker=marker, label=f"layer {layer}")
    if balanced is not None:
        axes.axhline(balanced, color="black", linestyle=":", linewidth=1.2)
        low, high = axes.get_ylim()
        axes.set_ylim(min(0.95 * balanced, low), max(1.05 * balanced, high))
    step_axis(axes, steps[-1])
    averaged = f", mean of {round(window * (steps[-1] - steps[0]) / (len(steps) - 1))} steps" if window > 1 else ""
    axes.set_title(f"each layer{averaged}", fontsize=11)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if few:
        axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    else:
        figure.colorbar(scale, ax=axes, label="layer", pad=0.02, ticks=ticks(layers, 12))

"""Small shared things of the pictures: colours, running means, thinning, ticks, the axis of steps, pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Floats = NDArray[np.float64]

# Okabe and Ito 2008, without black (kept for text) and yellow (too pale on white).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")
GREY = "#8a8a8a"
MOST_POINTS = 2000  # more than the pixels across a picture


def running_mean(values: Floats, window: int) -> Floats:
    """Mean of the about `window` values around each place along axis 0 (of fewer at the ends), leaving nan out."""
    known = np.isfinite(values)
    zero = np.zeros((1, *values.shape[1:]))
    sums = np.concatenate((zero, np.cumsum(np.where(known, values, 0.0), axis=0)))
    counts = np.concatenate((zero, np.cumsum(known, axis=0)))
    place = np.arange(len(values))
    begin = np.maximum(0, place - window // 2)
    end = np.minimum(len(values), place + window // 2 + 1)
    n = counts[end] - counts[begin]
    return np.where(n > 0, (sums[end] - sums[begin]) / np.maximum(n, 1), np.nan)


def thinned(length: int) -> NDArray[np.int64]:
    """At most MOST_POINTS places of `length`, evenly spread, the last one among them."""
    stride = max(1, -(-length // MOST_POINTS))
    return np.arange(length - 1, -1, -stride)[::-1]


def smoothing_window(length: int) -> int:
    """How many steps to average: a fiftieth of the run, at least 5, and odd, so that it has a middle."""
    return max(5, length // 50) | 1


def step_axis(axes: Axes, last: float) -> None:
    """Whole steps from 0 to a little beyond `last`."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlim(0, 1.02 * max(2.0, last))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 2.5, 5, 10]))
    axes.set_xlabel("step")


def shortened(name: str, most: int = 60) -> str:
    """`name`, its middle left out where it is long."""
    return name if len(name) <= most else f"{name[: most // 2]}…{name[-most // 2 :]}"


def ticks(length: int, most: int) -> list[int]:
    """At most `most` of the places 0, 1, ... of `length`, evenly spread."""
    return list(range(0, length, -(-length // most)))


def short_number(value: float, _: float | None = None) -> str:
    """A number of steps or tokens, short, for the ticks of an axis: 250, 25k, 1.5M."""
    for unit, name, least in ((1e6, "M", 1e6), (1e3, "k", 1e4)):
        if abs(value) >= least:
            return f"{value / unit:g}{name}"
    return f"{value:g}"


def pixels_of(figure: Figure) -> NDArray[np.uint8]:
    """`figure` as [height, width, red green blue]."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3]

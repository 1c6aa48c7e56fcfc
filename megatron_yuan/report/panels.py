"""What is on the page of one run or several: panels in order, each with figures and a sentence on how to read them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from megatron_yuan.report.expert_figures import COLLAPSED_BELOW_ENTROPY
from megatron_yuan.report.expert_plot import highest_load, load_figure
from megatron_yuan.report.layer_curves import layer_curves_figure
from megatron_yuan.report.layer_grid import coactivation_figure, load_over_time_figure, load_scale
from megatron_yuan.report.loss_plot import loss_figure
from megatron_yuan.report.named_run import NamedRun
from megatron_yuan.report.run_curves import Quantity, curves_figure, losses_figure
from megatron_yuan.report.series import layers_of, recent_steps, tables_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_FRAMES = 60
"""Moments of the load over time."""


class Picture(NamedTuple):
    """One run's figure in a panel, or one of all runs."""

    caption: str
    """Name of the run; empty where the figure shows them all."""
    figure: Figure | None
    """None where the run's metrics do not tell of it."""


@dataclass(frozen=True)
class Panel:
    """A part of the page; `key` is its id, and in the names of its PNGs."""

    key: str
    title: str
    note: str
    draw: Callable[[Sequence[NamedRun]], list[Picture]]
    """Makes the figures when it is their turn, so that one panel's are in memory at a time."""


def _losses(runs: Sequence[NamedRun]) -> list[Picture]:
    together = [Picture("", losses_figure(runs))] if len(runs) > 1 else []
    return together + [Picture(run.name, loss_figure(run.metrics)) for run in runs]


def _curves(quantity: Quantity) -> Callable[[Sequence[NamedRun]], list[Picture]]:
    return lambda runs: [Picture("", curves_figure(runs, quantity))]


def _recent_load(runs: Sequence[NamedRun]) -> list[Picture]:
    recent = [tables_of(run.metrics, "expert_load", 1, recent_steps(run.metrics)) for run in runs]
    highest = max((highest_load(table.sums) for tables in recent for table in tables), default=1.0)
    return [
        Picture(run.name, load_figure(tables[0].sums, tables[0].first, tables[0].last, highest) if tables else None)
        for run, tables in zip(runs, recent, strict=True)
    ]


def _load_over_time(runs: Sequence[NamedRun]) -> list[Picture]:
    tables = [tables_of(run.metrics, "expert_load", MOST_FRAMES) for run in runs]
    highest = load_scale([each for of_run in tables for each in of_run])
    return [
        Picture(run.name, load_over_time_figure(of_run, highest) if of_run else None)
        for run, of_run in zip(runs, tables, strict=True)
    ]


def _layers(field: str, label: str, balanced: float | None = None) -> Callable[[Sequence[NamedRun]], list[Picture]]:
    def draw(runs: Sequence[NamedRun]) -> list[Picture]:
        series = [layers_of(run.metrics, field) for run in runs]
        figures = [layer_curves_figure(*each, label, balanced) if each is not None else None for each in series]
        axes = [figure.axes[0] for figure in figures if figure is not None]
        if axes:
            low, high = zip(*(each.get_ylim() for each in axes), strict=True)
            for each in axes:
                each.set_ylim(min(low), max(high))  # side by side, heights can be compared
        return [Picture(run.name, figure) for run, figure in zip(runs, figures, strict=True)]

    return draw


def _coactivation(runs: Sequence[NamedRun]) -> list[Picture]:
    found = (tables_of(run.metrics, "coactivation", 1, recent_steps(run.metrics)) for run in runs)
    return [
        Picture(run.name, coactivation_figure(tables[0].sums) if tables else None)
        for run, tables in zip(runs, found, strict=True)
    ]


def panels() -> Iterator[Panel]:
    """In the order of the page; the load that can be moved through time stands between `load` and `load-over-time`."""
    yield Panel(
        "loss",
        "Loss",
        "Mean loss of a token, in nats: training (every step faint, running mean bold), each set of the blend, and "
        "each validation set.",
        _losses,
    )
    yield Panel(
        "learning-rate",
        "Learning rate",
        "What the step was made with.",
        _curves(Quantity("lr", "learning rate", smooth=False, from_zero=True)),
    )
    yield Panel(
        "gradient-norm",
        "Gradient norm",
        "Of the whole gradient, before clipping; on a logarithmic axis where it has spikes.",
        _curves(Quantity("grad_norm", "gradient norm")),
    )
    yield Panel(
        "throughput",
        "Throughput",
        "Tokens a second of all devices together; validation and checkpoints are not in it.",
        _curves(Quantity("tokens_per_second", "tokens / s", from_zero=True)),
    )
    yield Panel(
        "mfu",
        "Model FLOPs utilisation",
        "The model's arithmetic over the peak of the devices, as the run's log states it.",
        _curves(Quantity("mfu", "MFU (% of peak)", factor=100, from_zero=True)),
    )
    yield Panel(
        "expert-load",
        "Expert load of late",
        "Each expert's load over its layer's mean in the last tenth of the run (10 to 100 steps): 1.0 = balanced.",
        _recent_load,
    )
    yield Panel(
        "expert-load-over-time",
        "Expert load over time",
        "Each expert's load over the mean of its layer: 1.0 = balanced.",
        _load_over_time,
    )
    yield Panel(
        "max-over-mean",
        "Busiest expert of each layer",
        "Load of the busiest expert over the mean load: 1.0 = balanced; experts / choices a token = collapsed.",
        _layers("load_max_over_mean", "load, max / mean (dotted: 1.0 = balanced)", 1.0),
    )
    yield Panel(
        "entropy",
        "Entropy of each layer's load",
        "Over that of an even load: 1.0 = balanced, 0.0 = one expert takes all; a layer that stays below "
        f"{COLLAPSED_BELOW_ENTROPY} has collapsed.",
        _layers("load_entropy", "entropy (dotted: 1.0 = balanced)", 1.0),
    )
    yield Panel(
        "top2-margin",
        "Top-2 margin of each layer",
        "Difference of a token's two highest expert probabilities, mean over tokens: near 0 the router hardly decides.",
        _layers("top2_margin", "probability, first - second"),
    )
    yield Panel(
        "balance-loss",
        "Balance loss of each layer",
        "As it counts in the objective; runs without a balance loss have none.",
        _layers("balance_loss", "balance loss"),
    )
    yield Panel(
        "co-activation",
        "Co-activation",
        "Of the tokens that visit an expert (row), the share that visits another (column) too, of late.",
        _coactivation,
    )

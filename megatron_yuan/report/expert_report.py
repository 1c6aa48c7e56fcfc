"""What is told of the experts, step by step: figures for metrics and charts, heat strips, warnings, pictures.

L layers, E experts.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from megatron_yuan.log import console, logger
from megatron_yuan.report.expert_figures import entropy, max_over_mean
from megatron_yuan.report.expert_watch import ExpertWatch
from megatron_yuan.report.heat_strip import heat_strip, legend
from megatron_yuan.report.result import StepResult
from megatron_yuan.report.table_sum import TableSum

# A table for each step of a long run of a large model would be gigabytes; in a run of more steps than this a table
# holds the sum over several, and nothing is left out.
MOST_LOAD_TABLES = 5000
MOST_COACTIVATION_TABLES = 100  # each of them is E times as large
MOST_PICTURES = 100


class ExpertStep(NamedTuple):
    """One step's experts, for the places that they are told to."""

    fields: dict[str, Any]
    """Of the record in metrics.jsonl."""
    scalars: dict[str, float]
    load_LE: NDArray[np.int64] | None
    """Loads summed over the steps since the last picture, at the steps that are to have one."""
    steps: tuple[int, int]
    """First and last step of that sum."""


class ExpertReport:
    """Told every step of a session."""

    def __init__(self, interval: int, total_steps: int, start_step: int, last_step: int) -> None:
        """For a session from after `start_step` to `last_step` of `total_steps`; strips every `interval` (0: never)."""
        self._watch = ExpertWatch(start_step)
        self._loads = TableSum("expert_load", -(-total_steps // MOST_LOAD_TABLES), last_step)
        self._pairs = TableSum("coactivation", -(-total_steps // MOST_COACTIVATION_TABLES), last_step)
        self._strip = self._picture = None
        if interval > 0:
            pictures = max(1, -(-total_steps // interval))
            self._strip = TableSum("strip", interval, last_step)
            self._picture = TableSum("picture", interval * -(-pictures // MOST_PICTURES), last_step)
        self._legend_said = False

    def step(self, result: StepResult) -> ExpertStep:
        """Say what there is to say of `result`, and return what is to be written."""
        if result.expert_load is None:
            return ExpertStep({"load_max_over_mean": None}, {}, None, (0, 0))
        load_LE = np.asarray(result.expert_load, dtype=np.int64)
        dead_LE = self._watch.see(result.step, load_LE)
        if self._strip is not None and (strip_LE := self._strip.add(result.step, load_LE)) is not None:
            self._say(strip_LE, dead_LE, result.step - self._strip.steps + 1, result.step)
        figures = _figures(result, load_LE, dead_LE)
        fields = {name: _compact(values) for name, values in figures.items()}
        fields |= self._loads.fields(result.step, load_LE)
        fields |= self._pairs.fields(result.step, result.coactivation)
        picture_LE, first = None, 0
        if self._picture is not None:
            picture_LE = self._picture.add(result.step, load_LE)
            first = result.step - self._picture.steps + 1
        return ExpertStep(fields, _scalars(figures), picture_LE, (first, result.step))

    def _say(self, load_LE: NDArray[np.int64], dead_LE: NDArray[np.bool_], first: int, last: int) -> None:
        encoding = console().encoding
        lines = heat_strip(load_LE, dead_LE, first, last, encoding)
        for line in lines if self._legend_said else [*legend(encoding), *lines]:
            logger.info("%s", line)
        self._legend_said = True


def _figures(result: StepResult, load_LE: NDArray[np.int64], dead_LE: NDArray[np.bool_]) -> dict[str, list[float]]:
    """[L] each; what nobody measured is left out."""
    figures = {
        "load_max_over_mean": max_over_mean(load_LE).tolist(),
        "load_entropy": entropy(load_LE).tolist(),
        "dead_experts": dead_LE.sum(axis=1).tolist(),
    }
    if result.top2_margin is not None:
        figures["top2_margin"] = list(result.top2_margin)
    if result.balance_loss is not None and any(result.balance_loss):
        figures["balance_loss"] = list(result.balance_loss)
    return figures


def _scalars(figures: dict[str, list[float]]) -> dict[str, float]:
    """Each layer's, and one of the whole model to look at first. Unknown figures (nan) do not count there."""
    values = {
        f"experts/{name.removeprefix('load_')}/layer_{i:03d}": value
        for name, of_layers in figures.items()
        for i, value in enumerate(of_layers)
    }
    known = [value for value in figures["load_max_over_mean"] if value == value]
    if known:
        values["experts/worst_max_over_mean"] = max(known)
        values["experts/lowest_entropy"] = min(value for value in figures["load_entropy"] if value == value)
    values["experts/dead"] = sum(figures["dead_experts"])
    if "balance_loss" in figures:
        values["experts/balance_loss"] = sum(figures["balance_loss"])
    return values


def _compact(values: list[float]) -> list[float]:
    """Five significant digits: 24 layers of every step are written."""
    return [value if isinstance(value, int) else float(f"{value:.5g}") for value in values]

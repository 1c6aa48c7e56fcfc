"""What a study shows: losses by arrangement with their spread over seeds, beside the first one's.

The held-out loss of a run is the mean over its validation sets of the loss after the last step. A difference is shown
where it is larger than the spread over seeds, highest less lowest, of either of the two; with one seed none is.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from megatron_yuan.errors import DataError
from megatron_yuan.planning.accounting import count_parameters
from megatron_yuan.report.metrics import read_metrics
from megatron_yuan.study.running import CellRun

WARMUP_STEPS = 5  # whose time is not typical


@dataclass(frozen=True)
class Finding:
    """One row: an arrangement at a number of experts."""

    arrangement: str
    experts: int
    parameters: int
    active_parameters: int
    train_tokens: int
    """Tokens trained on, in each run."""
    losses: Mapping[int, float]
    """Held-out loss by seed, nats a token."""
    set_losses: Mapping[str, float]
    """Mean over seeds, by validation set."""
    milliseconds: float
    """Median of a step: as the runs ran, or timed in turn."""
    worst_imbalance: float
    """Busiest expert over the mean one, in the worst layer: the median over the last tenth of the steps."""

    @property
    def loss(self) -> float:
        """Mean over seeds."""
        return statistics.fmean(self.losses.values())

    @property
    def spread(self) -> float:
        """Highest less lowest over seeds."""
        return max(self.losses.values()) - min(self.losses.values())


@dataclass(frozen=True)
class Difference:
    """Of a finding from the reference, over the seeds that both have."""

    relative: float
    """Of the mean losses, in parts of the reference's: negative is better."""
    shown: bool
    """Larger than the spread over seeds."""


def find(runs: Sequence[CellRun], timed: Mapping[str, float] | None = None) -> list[Finding]:
    """A row for each arrangement and number of experts, from the runs that are done.

    Raises DataError for none, and for a loss that is not finite.

    `timed`: milliseconds of a step by `row_name`, where they were measured apart.
    """
    groups: dict[tuple[int, str], list[CellRun]] = {}
    for run in runs:
        if run.is_done:
            groups.setdefault((run.cell.experts, run.cell.arrangement.name), []).append(run)
    if not groups:
        raise DataError("no cell of the study is done yet, so it shows nothing; run it first.")
    return [_row(group, timed or {}) for _, group in sorted(groups.items(), key=lambda item: item[0][0])]


def row_name(arrangement: str, experts: int) -> str:
    """As pictures and files call a row."""
    return f"{arrangement}, {experts} experts"


def compare(row: Finding, reference: Finding) -> Difference | None:
    """`row` beside `reference`; None where it is the reference itself, or they have no seed in common."""
    seeds = row.losses.keys() & reference.losses.keys()
    if row is reference or not seeds:
        return None
    ours, theirs = ([each.losses[seed] for seed in sorted(seeds)] for each in (row, reference))
    difference = statistics.fmean(ours) - statistics.fmean(theirs)
    spread = max(max(each) - min(each) for each in (ours, theirs))
    return Difference(difference / statistics.fmean(theirs), len(seeds) > 1 and abs(difference) > spread)


def _row(runs: Sequence[CellRun], timed: Mapping[str, float]) -> Finding:
    config, cell = runs[0].config, runs[0].cell
    parameters = count_parameters(config.model)
    losses: dict[int, float] = {}
    by_set: dict[str, list[float]] = {}
    seconds: list[float] = []
    imbalances: list[float] = []
    tokens = 0
    for run in runs:
        metrics = read_metrics(run.folder.metrics)
        last = metrics.evaluations[-1]["losses"]
        for name, loss in last.items():
            if not math.isfinite(loss):
                raise DataError(
                    f"cell {run.cell.name} has come to a loss of {loss} on {name}, which is not finite and compares "
                    f"with none.\nFix: delete {run.folder.path} and its .yaml, and train it anew with a lower --lr."
                )
        losses[run.cell.seed] = statistics.fmean(last.values())
        for name, loss in last.items():
            by_set.setdefault(name, []).append(loss)
        seconds += [record["seconds"] for record in metrics.steps[WARMUP_STEPS:] or metrics.steps]
        tail = metrics.steps[-max(1, len(metrics.steps) // 10) :]
        imbalances += [max(each) for record in tail if (each := record["load_max_over_mean"])]
        training = run.config.training
        tokens = training.train_iters * (training.global_batch_size or 1) * run.config.data.seq_length
    name = row_name(cell.arrangement.name, cell.experts)
    return Finding(
        arrangement=cell.arrangement.name,
        experts=cell.experts,
        parameters=parameters.total,
        active_parameters=parameters.active,
        train_tokens=tokens,
        losses=losses,
        set_losses={name: statistics.fmean(each) for name, each in by_set.items()},
        milliseconds=timed.get(name, 1000 * statistics.median(seconds)),
        worst_imbalance=statistics.median(imbalances),
    )

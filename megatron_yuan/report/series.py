"""Curves and tables out of a run's metrics; what a record lacks, or holds in a wrong form, is left out.

Shapes: R records, L layers, E experts. Metrics of earlier versions know less of the experts: what can be computed from
their tables of loads is.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from megatron_yuan.report.curves import Floats
from megatron_yuan.report.expert_figures import entropy
from megatron_yuan.report.metrics import Metrics

Records = list[dict[str, Any]]


class Tables(NamedTuple):
    """Counts summed over the steps `first` to `last`."""

    first: int
    last: int
    sums: Floats
    """[L, E] loads or [L, E, E] co-activations."""


def steps_of(records: Records) -> Floats:
    """[R] their steps."""
    return np.array([record["step"] for record in records], dtype=np.float64)


def values_of(records: Records, name: str) -> Floats:
    """[R] the field `name`, nan where it is not a number."""
    return np.array([number_or_nan(record.get(name)) for record in records], dtype=np.float64)


def number_or_nan(value: Any) -> float:
    """`value` where it is a number."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else np.nan


def losses_of(record: dict[str, Any]) -> dict[str, float]:
    """The losses of sets that a step's or a validation's record tells of."""
    losses = record.get("losses")
    return {name: number_or_nan(loss) for name, loss in losses.items()} if isinstance(losses, dict) else {}


def layers_of(metrics: Metrics, name: str) -> tuple[Floats, Floats] | None:
    """(steps [R], the field `name` [R, L]) of the records that have it; None where none has."""
    counted = [(record["step"], values) for record in metrics.steps if (values := _row(record, name)) is not None]
    # One run has one number of layers: a row of another length is damage.
    counted = [pair for pair in counted if len(pair[1]) == len(counted[-1][1])]
    if not counted:
        return None
    steps, rows = zip(*counted, strict=True)
    return np.array(steps, dtype=np.float64), np.array(rows, dtype=np.float64)


def tables_of(metrics: Metrics, name: str, most: int, recent_steps: int | None = None) -> list[Tables]:
    """The tables of the field `name`, neighbours summed so that there are at most `most`, in the order of steps.

    With `recent_steps` those of the run's end alone, as many as are needed to cover so many counted steps.
    """
    found: list[Tables] = []
    covered = 0
    for record in reversed(metrics.steps):
        table = _table(record, name)
        if table is None or (found and table.shape != found[0].sums.shape):
            continue
        if recent_steps is not None and covered >= recent_steps:
            break
        steps = counted if isinstance(counted := record.get(f"{name}_steps"), int) else 1
        found.append(Tables(record["step"] - steps + 1, record["step"], table))
        covered += steps
    found.reverse()
    together = max(1, -(-len(found) // most))
    groups = [found[i : i + together] for i in range(0, len(found), together)]
    return [Tables(group[0].first, group[-1].last, sum_of([each.sums for each in group])) for group in groups]


def recent_steps(metrics: Metrics) -> int:
    """How many steps 'of late' are: the last tenth of the run, but 10 to 100 steps."""
    return min(100, max(10, len(metrics.steps) // 10))


def sum_of(tables: list[Floats]) -> Floats:
    """Sum of tables of one shape."""
    return np.sum(tables, axis=0)


def _row(record: dict[str, Any], name: str) -> list[float] | None:
    values = record.get(name)
    if values is None and name == "load_entropy":
        table = _table(record, "expert_load")
        return None if table is None else entropy(table).tolist()
    if not isinstance(values, list) or not values:
        return None
    return [number_or_nan(value) for value in values]


def _table(record: dict[str, Any], name: str) -> NDArray[np.float64] | None:
    if not record.get(name):
        return None
    try:
        table = np.array(record[name], dtype=np.float64)
    except (TypeError, ValueError):
        return None
    return table if table.ndim == (2 if name == "expert_load" else 3) else None

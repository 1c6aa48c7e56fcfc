"""Tables of counts, summed over steps before they are written, so that a long run's metrics stay small."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


class TableSum:
    """Adds tables up; every `stride` steps, and at `last_step`, gives the sum away and begins anew."""

    def __init__(self, name: str, stride: int, last_step: int) -> None:
        """`name` is the field that the sum is written as; the field `name`_steps says over how many steps it is."""
        self._name = name
        self._stride = max(1, stride)
        self._last_step = last_step
        self._steps = 0
        self._table: NDArray[np.int64] | None = None

    def add(self, step: int, table: ArrayLike) -> NDArray[np.int64] | None:
        """Add `table`; the sum where it is due. `steps` then still says over how many steps."""
        if self._table is None:
            self._table, self._steps = np.array(table, dtype=np.int64), 0
        else:
            self._table += np.asarray(table, dtype=np.int64)
        self._steps += 1
        if step % self._stride and step != self._last_step:
            return None
        due, self._table = self._table, None
        return due

    @property
    def steps(self) -> int:
        """Steps in the sum last given, or in the one growing."""
        return self._steps

    def fields(self, step: int, table: ArrayLike | None) -> dict[str, Any]:
        """`add`, with the sum as the fields of a record; none where it is not due, or `table` is unknown."""
        due = None if table is None else self.add(step, table)
        return {} if due is None else {self._name: due.tolist(), f"{self._name}_steps": self._steps}

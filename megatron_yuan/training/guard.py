"""Whether a step may change the weights: decided from two numbers that all ranks have alike, before the optimizer.

A step is bad where its loss or its gradient norm is not finite on any rank, or, on request, far above the steps
before it: by more than sigma times their spread. Center and spread are the median and 1.4826 x the median absolute
deviation (the standard deviation, were they normal), which a few odd steps do not move; bad steps are never part of
the past. A bad step is skipped: weights, moments and Adam's count stay to the bit, and the data go on.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping
from typing import Any

from megatron_yuan.config.schema import GuardConfig
from megatron_yuan.errors import CheckpointError

_NORMAL = 1.4826  # standard deviation over median absolute deviation, of normal numbers
_LEAST_SPREAD = 1e-3  # of the center: a run that stands still must not stop at its own rounding
QUANTITIES = ("loss", "grad_norm")


class Guard:
    """Judges each step by the steps accepted before it."""

    def __init__(self, config: GuardConfig) -> None:
        self._config = config
        self._past: dict[str, deque[float]] = {name: deque(maxlen=config.guard_window) for name in QUANTITIES}
        self.skipped = 0
        """Bad steps of the whole run."""
        self.in_a_row = 0
        """Bad steps since the last good one."""

    def judge(self, loss: float, grad_norm: float) -> str | None:
        """Why the step is to be skipped, in words; None where it is good, and then part of the past."""
        values = dict(zip(QUANTITIES, (loss, grad_norm), strict=True))
        reason = next((each for each in map(self._objection, *zip(*values.items(), strict=True)) if each), None)
        if reason is None:
            self.in_a_row = 0
            for name, value in values.items():
                self._past[name].append(value)
        else:
            self.skipped += 1
            self.in_a_row += 1
        return reason

    @property
    def is_exhausted(self) -> bool:
        """Whether so many steps in a row were bad that the run should stop."""
        return self.in_a_row >= self._config.guard_max_skips

    def state(self) -> dict[str, Any]:
        """As JSON, for the checkpoint."""
        return {"skipped": self.skipped, "in_a_row": self.in_a_row, **{n: list(p) for n, p in self._past.items()}}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`; an empty one begins anew. Raises CheckpointError for what is none."""
        if not state:
            return
        try:
            past = {name: [float(value) for value in state[name]] for name in QUANTITIES}
            self.skipped, self.in_a_row = int(state["skipped"]), int(state["in_a_row"])
        except (KeyError, TypeError, ValueError):
            raise CheckpointError("run_state.json: what the guard has seen (extra.guard) is not readable") from None
        for name, values in past.items():
            self._past[name].extend(values)

    def _objection(self, name: str, value: float) -> str | None:
        words = name.replace("grad_norm", "gradient norm")
        if not math.isfinite(value):
            return f"{words} is {value}"
        past, sigma = self._past[name], self._config.guard_sigma
        if sigma == 0 or len(past) < self._config.guard_window:
            return None
        center = statistics.median(past)
        spread = max(_NORMAL * statistics.median(abs(each - center) for each in past), _LEAST_SPREAD * abs(center))
        if value <= center + sigma * spread:
            return None
        return f"{words} {value:.4g} is over {sigma:g} sigma above its last {len(past)} (median {center:.4g})"

"""What expert loads mean, in figures. One definition each; the console, metrics, warnings and pictures all use these.

Shapes: L layers, E experts; leading axes ("...") may be anything, or none. A load is a number of tokens: with K choices
a token a layer's loads add up to K times its tokens.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

DEAD_AFTER_STEPS = 20
"""An expert is dead after so many steps without a token. Balanced, it gets K x tokens / E of them in each step."""
COLLAPSED_BELOW_ENTROPY = 0.6
"""A layer whose entropy stays below this for DEAD_AFTER_STEPS has collapsed: of 32 experts it uses as many as an even
load of 8 would, of 8 experts 3.5. Two choices of 8 experts, always the same, come to 0.33."""


def relative_load(load: ArrayLike) -> Floats:
    """[..., E] each expert's load over its layer's mean: x_e = n_e x E / sum(n), 1.0 is balanced; nan: no token."""
    load_E = np.asarray(load, dtype=np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        return load_E * load_E.shape[-1] / load_E.sum(axis=-1, keepdims=True)


def max_over_mean(load: ArrayLike) -> Floats:
    """[...] max(n) / mean(n): 1.0 is balanced, E / K is collapsed (K choices a token); nan without a token."""
    return relative_load(load).max(axis=-1)


def entropy(load: ArrayLike) -> Floats:
    """[...] entropy of the load, -sum(p ln p) / ln(E) with p = n / sum(n): 1.0 is even, 0.0 one expert takes all.

    nan where no token was routed. A layer of one expert is even by definition.
    """
    relative_E = relative_load(load)
    E = relative_E.shape[-1]
    p_E = relative_E / E
    # 0 ln 0 is 0, its limit; adding 0.0 turns the negative zero of a single expert's load into zero.
    nats = -np.where(p_E > 0, p_E * np.log(np.where(p_E > 0, p_E, 1.0)), p_E).sum(axis=-1) + 0.0
    return nats / np.log(E) if E > 1 else np.where(np.isnan(nats), np.nan, 1.0)


def effective_experts(normalised_entropy: float, experts: int) -> float:
    """E^entropy: the number of experts that, evenly loaded, would have this entropy."""
    return float(experts**normalised_entropy)


def partners(coactivation: ArrayLike) -> Floats:
    """[..., E, E] of the tokens that visit expert i (row), the share that visits expert j (column) too: C_ij / C_ii.

    Balanced, every entry is (K - 1) / (E - 1). The diagonal, and rows of experts without a token, are nan.
    """
    C_EE = np.asarray(coactivation, dtype=np.float64)
    load_E = np.diagonal(C_EE, axis1=-2, axis2=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        share_EE = C_EE / load_E[..., None]
    return np.where(np.eye(C_EE.shape[-1], dtype=bool), np.nan, share_EE)


class LastVisits:
    """When each expert last had a token; from it, which are dead."""

    def __init__(self, start_step: int) -> None:
        """Count from `start_step`: an expert that never gets a token is dead DEAD_AFTER_STEPS later."""
        self._start = start_step
        self.step = start_step
        """The last step seen."""
        self._last_LE: NDArray[np.int64] | None = None

    def see(self, step: int, load_LE: NDArray[Any]) -> None:
        """Take note of one step's loads."""
        if self._last_LE is None:
            self._last_LE = np.full(load_LE.shape, self._start, dtype=np.int64)
        self._last_LE[load_LE > 0] = step
        self.step = step

    @property
    def dead_LE(self) -> NDArray[np.bool_]:
        """[L, E] no token in the last DEAD_AFTER_STEPS steps."""
        assert self._last_LE is not None, "nothing was seen yet"
        return self.step - self._last_LE >= DEAD_AFTER_STEPS

    def idle_since(self, layer: int, expert: int) -> int:
        """The first step of the present stretch without a token."""
        assert self._last_LE is not None, "nothing was seen yet"
        return int(self._last_LE[layer, expert]) + 1

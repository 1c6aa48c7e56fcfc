"""The experts' load as text: a line a layer, a character an expert; fits 100 columns with the time in front of it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_yuan.report.expert_figures import DEAD_AFTER_STEPS, entropy, max_over_mean, relative_load

BLOCKS = "▁▂▃▄▅▆▇█"
DIGITS = "12345678"  # the same, where the terminal's encoding has no blocks
MEAN_LEVEL = 4  # the level, from 1, of the mean load: half the height; each level up is sqrt(2) times the one below
IDLE, DEAD = ".", "x"
MOST_CHARACTERS = 32  # more experts than this share a character


def heat_strip(
    load_LE: NDArray[Any], dead_LE: NDArray[np.bool_], first_step: int, last_step: int, encoding: str = "utf-8"
) -> list[str]:
    """Lines for the loads summed over `first_step` to `last_step`; `dead_LE` marks the experts that are dead by now."""
    L, E = load_LE.shape
    together = -(-E // MOST_CHARACTERS)
    ratio_L, entropy_L, dead_L = max_over_mean(load_LE), entropy(load_LE), dead_LE.sum(axis=1)
    digits = len(str(L - 1))
    steps = f"step {last_step}" if first_step == last_step else f"steps {first_step}-{last_step}"
    lines = [f"expert load, {steps}" + (f"; {together} experts a character" if together > 1 else "")]
    for layer in range(L):
        strip = _characters(_grouped(load_LE[layer], together), _grouped(dead_LE[layer], together), _levels(encoding))
        figures = f"max/mean {ratio_L[layer]:5.2f}  entropy {entropy_L[layer]:5.3f}  dead {dead_L[layer]}"
        lines.append(f"L{layer:0{digits}d} {strip} {figures}")
    return lines


def legend(encoding: str = "utf-8") -> list[str]:
    """What the characters and figures mean."""
    levels = _levels(encoding)
    low, mean, high = levels[0], levels[MEAN_LEVEL - 1], levels[-1]
    return [
        f"expert load: {mean} the mean, {high} 3.4 x or more, {low} 0.4 x or less, {IDLE} no token,",
        f"  {DEAD} dead: no token for {DEAD_AFTER_STEPS} steps; balanced is max/mean 1, entropy 1",
    ]


def level_of(relative: float) -> int:
    """0 for none, else 1 to 8 by the load over the mean: 0.4 and less is 1, 1/2 is 2, 1 is 4, 2 is 6, 3.4 is 8."""
    return 0 if not relative > 0 else max(1, min(len(BLOCKS), MEAN_LEVEL + round(2 * math.log2(relative))))


def _levels(encoding: str) -> str:
    return BLOCKS if encoding.lower().startswith("utf") else DIGITS


def _characters(load_G: NDArray[Any], dead_G: NDArray[Any], levels: str) -> str:
    return "".join(
        DEAD if dead == 1 else levels[level - 1] if (level := level_of(relative)) else IDLE
        for relative, dead in zip(relative_load(load_G), dead_G, strict=True)
    )


def _grouped(values_E: NDArray[Any], together: int) -> NDArray[np.float64]:
    """[G] the mean of each `together` neighbours."""
    ends = range(0, len(values_E), together)
    return np.array([values_E[i : i + together].mean(dtype=np.float64) for i in ends])

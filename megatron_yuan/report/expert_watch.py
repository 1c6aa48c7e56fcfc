"""Says, once and in words, that an expert has died, that a layer has collapsed, and that either has recovered.

L layers, E experts. At most one message of each kind a step, however many experts it is about.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_yuan.log import logger
from megatron_yuan.report.expert_figures import (
    COLLAPSED_BELOW_ENTROPY,
    DEAD_AFTER_STEPS,
    LastVisits,
    effective_experts,
    entropy,
)

REMEDY = (
    "To even the load, go on from a checkpoint with --moe-router-load-balancing-type aux_loss --moe-aux-loss-coeff "
    "0.01 (more where it is on), or begin a run with --moe-router-enable-expert-bias."
)
MOST_NAMED = 6  # experts or layers in one message


class ExpertWatch:
    """Told every step's loads; each expert and layer is warned of once a session, and its recovery said once."""

    def __init__(self, start_step: int) -> None:
        self.visits = LastVisits(start_step)
        self._even_at: dict[int, int] = {}  # layer -> the last step with an entropy above the limit
        self._start = start_step
        self._said_dead: set[tuple[int, int]] = set()
        self._said_alive: set[tuple[int, int]] = set()
        self._said_collapsed: set[int] = set()
        self._said_even: set[int] = set()
        self._remedy_said = False

    def see(self, step: int, load_LE: NDArray[Any]) -> NDArray[np.bool_]:
        """Take note of a step's loads, and say what there is to say; returns which experts are dead, [L, E]."""
        self.visits.see(step, load_LE)
        dead_LE = self.visits.dead_LE
        warnings = [self._deaths(step, dead_LE), self._collapses(step, load_LE)]
        warnings = [text for text in warnings if text]
        if warnings:
            remedy = "" if self._remedy_said else f" {REMEDY}"
            self._remedy_said = True
            logger.warning("step %d: %s%s", step, " ".join(warnings), remedy)
        recovered = self._recovery(dead_LE)
        if recovered:
            logger.info("step %d: %s", step, recovered)
        return dead_LE

    def _deaths(self, step: int, dead_LE: NDArray[np.bool_]) -> str:
        new = [place for place in _places(dead_LE) if place not in self._said_dead]
        self._said_dead.update(new)
        if not new:
            return ""
        named = []
        for (layer, since), places in groupby(
            new[:MOST_NAMED], lambda place: (place[0], self.visits.idle_since(*place))
        ):
            named.append(f"{_experts(layer, places)} since step {since}")
        return f"dead, no token for {DEAD_AFTER_STEPS} steps: {_listed(named, len(new), 'experts')}."

    def _collapses(self, step: int, load_LE: NDArray[Any]) -> str:
        experts = load_LE.shape[1]
        said = []
        for layer, value in enumerate(entropy(load_LE)):
            even_at = self._even_at.setdefault(layer, self._start)
            if not value < COLLAPSED_BELOW_ENTROPY:
                self._even_at[layer] = step
            elif step - even_at >= DEAD_AFTER_STEPS and layer not in self._said_collapsed:
                self._said_collapsed.add(layer)
                used = effective_experts(float(value), experts)
                said.append(
                    f"layer {layer} since step {even_at + 1} (entropy {value:.2f}, as if it had {used:.1f} experts)"
                )
        if not said:
            return ""
        return f"collapsed, entropy of the load below {COLLAPSED_BELOW_ENTROPY}: {_listed(said, len(said), 'layers')}."

    def _recovery(self, dead_LE: NDArray[np.bool_]) -> str:
        step = self.visits.step
        alive = sorted(each for each in self._said_dead - self._said_alive if not dead_LE[each])
        even = sorted(each for each in self._said_collapsed - self._said_even if self._even_at[each] == step)
        self._said_alive.update(alive)
        self._said_even.update(even)
        parts = []
        if alive:
            named = [_experts(layer, places) for layer, places in groupby(alive[:MOST_NAMED], lambda place: place[0])]
            parts.append(f"tokens again: {_listed(named, len(alive), 'experts')}.")
        if even:
            parts.append(f"no longer collapsed: {_listed((f'layer {each}' for each in even), len(even), 'layers')}.")
        return " ".join(parts)


def _places(mask_LE: NDArray[np.bool_]) -> list[tuple[int, int]]:
    return [(int(layer), int(expert)) for layer, expert in np.argwhere(mask_LE)]


def _experts(layer: int, places: Iterable[tuple[int, int]]) -> str:
    numbers = [str(expert) for _, expert in places]
    return f"layer {layer} expert{'s' if len(numbers) > 1 else ''} {', '.join(numbers)}"


def _listed(names: Iterable[str], total: int, kind: str) -> str:
    more = f", and {total - MOST_NAMED} more {kind}" if total > MOST_NAMED else ""
    return ", ".join(islice(names, MOST_NAMED)) + more

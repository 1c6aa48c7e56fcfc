from __future__ import annotations

import numpy as np
import pytest

from megatron_yuan.report.expert_figures import DEAD_AFTER_STEPS
from megatron_yuan.report.expert_watch import ExpertWatch

EVEN = np.full((2, 8), 10)


def killed(*places: tuple[int, int]) -> np.ndarray:
    load = EVEN.copy()
    for place in places:
        load[place] = 0
    return load


def watched(steps: int, load: np.ndarray, watch: ExpertWatch | None = None, start: int = 0) -> ExpertWatch:
    watch = watch or ExpertWatch(start)
    for step in range(start + 1, start + 1 + steps):
        watch.see(step, load)
    return watch


def test_a_balanced_run_says_nothing(said):
    watched(3 * DEAD_AFTER_STEPS, EVEN)
    assert said() == ""


def test_a_dead_expert_is_named_once_with_since_when_and_what_to_do(said):
    watch = watched(5, EVEN)
    watched(DEAD_AFTER_STEPS - 1, killed((1, 3)), watch, start=5)
    assert said() == ""
    watched(3 * DEAD_AFTER_STEPS, killed((1, 3)), watch, start=5 + DEAD_AFTER_STEPS - 1)
    (line,) = said().splitlines()
    assert line.startswith(f"warning: step {5 + DEAD_AFTER_STEPS}: dead, no token for {DEAD_AFTER_STEPS} steps: ")
    assert "layer 1 expert 3 since step 6." in line
    for flag in (
        "--moe-router-load-balancing-type aux_loss",
        "--moe-aux-loss-coeff",
        "--moe-router-enable-expert-bias",
    ):
        assert flag in line


def test_the_flags_that_are_advised_exist():
    from megatron_yuan.config.load import parse
    from megatron_yuan.report.expert_watch import REMEDY

    words = REMEDY.replace(",", "").rstrip(".").split()
    first = words.index("--moe-router-load-balancing-type")
    assert parse(words[first : first + 4]).config.model.moe_aux_loss_coeff == 0.01
    assert parse([words[-1]]).config.model.moe_router_enable_expert_bias


def test_many_deaths_are_one_message_and_the_remedy_is_said_once(said):
    watch = watched(DEAD_AFTER_STEPS, killed(*((0, e) for e in range(4)), *((1, e) for e in range(4))))
    (line,) = said().splitlines()
    assert "layer 0 experts 0, 1, 2, 3 since step 1, layer 1 experts 0, 1 since step 1, and 2 more experts." in line
    watched(DEAD_AFTER_STEPS, killed(*((0, e) for e in range(5))), watch, start=DEAD_AFTER_STEPS)
    (line,) = [line for line in said().splitlines() if line.startswith("warning")]
    assert "layer 0 expert 4" in line
    assert "--moe" not in line


def test_a_recovery_is_said_once(said):
    watch = watched(DEAD_AFTER_STEPS, killed((0, 2)))
    said()
    watched(2 * DEAD_AFTER_STEPS, EVEN, watch, start=DEAD_AFTER_STEPS)
    assert said() == f"step {DEAD_AFTER_STEPS + 1}: tokens again: layer 0 expert 2.\n"


def test_a_collapsed_layer_is_said_once_and_so_is_its_recovery(said):
    collapsed = EVEN.copy()
    collapsed[1] = [500, 500, 1, 1, 1, 1, 1, 1]
    watch = watched(3 * DEAD_AFTER_STEPS, collapsed)
    (line,) = said().splitlines()
    assert (
        "collapsed, entropy of the load below 0.6: layer 1 since step 1 (entropy 0.35, as if it had 2.1 experts)"
        in line
    )
    watched(5, EVEN, watch, start=3 * DEAD_AFTER_STEPS)
    assert said() == f"step {3 * DEAD_AFTER_STEPS + 1}: no longer collapsed: layer 1.\n"


def test_a_layer_that_is_even_now_and_then_has_not_collapsed(said):
    collapsed = EVEN.copy()
    collapsed[1] = [500, 500, 1, 1, 1, 1, 1, 1]
    watch = ExpertWatch(0)
    for step in range(1, 100):
        watch.see(step, EVEN if step % (DEAD_AFTER_STEPS - 1) == 0 else collapsed)
    assert said() == ""


@pytest.mark.parametrize("start", [0, 1000])
def test_a_resumed_session_waits_a_whole_window(said, start):
    watched(DEAD_AFTER_STEPS - 1, killed((0, 0)), start=start)
    assert said() == ""

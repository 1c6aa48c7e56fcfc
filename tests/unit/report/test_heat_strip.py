from __future__ import annotations

import numpy as np
import pytest

from megatron_yuan.report.heat_strip import heat_strip, legend, level_of

NONE = np.zeros((1, 4), dtype=bool)


def test_a_balanced_layer_is_a_flat_line_at_half_height():
    _, line = heat_strip(np.array([[9, 9, 9, 9]]), NONE, 1, 100)
    assert line == "L0 ▄▄▄▄ max/mean  1.00  entropy 1.000  dead 0"


def test_each_expert_has_its_character_and_a_dead_one_its_mark():
    dead = np.array([[False, False, False, True]])
    head, line = heat_strip(np.array([[30, 10, 0, 0]]), dead, 81, 100)
    assert head == "expert load, steps 81-100"
    assert line == "L0 ▇▄.x max/mean  3.00  entropy 0.406  dead 1"


def test_characters_rise_with_the_load():
    levels = [level_of(relative) for relative in np.linspace(0, 5, 1000)]
    assert levels == sorted(levels)
    assert set(levels) == set(range(9))
    assert [level_of(x) for x in (0.35, 0.5, 1.0, 2.0, 3.4)] == [1, 2, 4, 6, 8]


def test_a_terminal_without_blocks_gets_digits():
    lines = [*legend("ascii"), *heat_strip(np.array([[30, 10, 0, 0]]), NONE, 1, 1, "ascii")]
    assert all(line.isascii() for line in lines)
    assert lines[-1].startswith("L0 74..")


@pytest.mark.parametrize("experts", [1, 2, 32, 100, 256])
def test_lines_fit_80_columns_and_so_100_with_the_time(experts):
    load = np.zeros((24, experts), dtype=int)
    load[:, 0] = 10**9
    lines = [*legend(), *heat_strip(load, load == 0, 999_901, 1_000_000)]
    assert len(lines) == 2 + 1 + 24
    assert max(map(len, lines)) <= 80


def test_many_experts_share_characters_and_are_dead_together_only():
    dead = np.zeros((1, 64), dtype=bool)
    dead[0, :3] = True
    load = np.where(dead, 0, 10)
    head, line = heat_strip(load, dead, 1, 1)
    assert "2 experts a character" in head
    assert line.split()[1] == "x" + "▂" + "▄" * 30


def test_a_layer_without_tokens_does_not_break_the_strip():
    _, line = heat_strip(np.zeros((1, 4), dtype=int), NONE, 1, 1)
    assert line.startswith("L0 .... max/mean   nan")

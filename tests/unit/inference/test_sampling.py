from __future__ import annotations

import math

import pytest
import torch

from megatron_yuan.errors import ConfigError
from megatron_yuan.inference.sampling import Chooser, Sampling, draw, greedy, keep_top_k, keep_top_p, probabilities

SCORES = torch.tensor([[0.1, 2.0, -1.0, 1.0], [3.0, 3.0, 0.0, -5.0]])


def test_greedy_takes_the_best_and_of_equals_the_first() -> None:
    assert greedy(SCORES).tolist() == [1, 0]
    assert Chooser(Sampling(), 2)(SCORES).tolist() == [1, 0]


def test_top_k_keeps_exactly_k_even_among_equals() -> None:
    kept = keep_top_k(SCORES, 1).isfinite()
    assert kept.sum(dim=1).tolist() == [1, 1]
    assert keep_top_k(SCORES, 2).isfinite().tolist() == [[False, True, False, True], [True, True, False, False]]
    assert torch.equal(keep_top_k(SCORES, 0), SCORES) and torch.equal(keep_top_k(SCORES, 9), SCORES)


def test_top_p_keeps_the_fewest_that_reach_it() -> None:
    scores = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    for p, count in ((0.01, 1), (0.45, 1), (0.55, 2), (0.79, 2), (0.85, 3), (0.96, 4), (1.0, 4)):
        assert int(keep_top_p(scores, p).isfinite().sum()) == count, p


def test_temperature_sharpens_and_flattens() -> None:
    cold, warm, hot = (probabilities(SCORES[:1], Sampling(temperature=t)) for t in (0.1, 1.0, 10.0))
    torch.testing.assert_close(warm, SCORES[:1].double().softmax(dim=-1))
    assert cold.max() > warm.max() > hot.max()
    assert probabilities(SCORES[:1], Sampling(temperature=1e-300)).tolist() == [[0, 1, 0, 0]]


def test_a_draw_is_where_the_cumulative_probability_passes_the_number() -> None:
    p = torch.tensor([[0.0, 0.25, 0.0, 0.75, 0.0]], dtype=torch.float64)
    for number, token in ((0.0, 1), (0.2499, 1), (0.25, 3), (0.9999999, 3), (math.nextafter(1, 0), 3)):
        assert int(draw(p, torch.tensor([number], dtype=torch.float64))) == token, number


def test_draws_are_as_frequent_as_they_are_probable() -> None:
    choose, counts = Chooser(Sampling(temperature=1.0, seed=5), 2), torch.zeros(2, 4)
    for _ in range(4000):
        counts[torch.arange(2), choose(SCORES)] += 1
    assert (counts / 4000 - SCORES.softmax(dim=-1)).abs().max() < 0.03


def test_the_seed_decides_and_rows_draw_apart() -> None:
    flat = torch.zeros(3, 1000)

    def drawn(seed: int, rows: int = 3) -> list[list[int]]:
        choose = Chooser(Sampling(temperature=1.0, seed=seed), rows)
        return torch.stack([choose(flat[:rows]) for _ in range(8)], dim=1).tolist()

    assert drawn(1) == drawn(1) != drawn(2)
    assert drawn(1)[0] != drawn(1)[1]
    assert drawn(1)[:2] == drawn(1, rows=2)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"temperature": math.inf}, "temperature is inf"),
        ({"top_p": 0.0}, "top-p is 0.0"),
        ({"top_p": 1.1}, "top-p is 1.1"),
        ({"top_p": math.nan}, "top-p is nan"),
        ({"top_k": -1}, "top-k is -1"),
    ],
)
def test_values_out_of_range_are_refused(values: dict[str, float], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Sampling(**values)  # type: ignore[arg-type]

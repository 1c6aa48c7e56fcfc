"""From losses to what may be said of them."""

from __future__ import annotations

from megatron_yuan.study.findings import Finding, compare
from megatron_yuan.study.tables import tables


def finding(name: str, experts: int, *losses: float) -> Finding:
    return Finding(
        arrangement=name,
        experts=experts,
        parameters=1000,
        active_parameters=500,
        train_tokens=4096,
        losses=dict(enumerate(losses)),
        set_losses={"en": losses[0]},
        milliseconds=12.0,
        worst_imbalance=1.5,
    )


def test_a_difference_beyond_the_spread_of_both_is_shown() -> None:
    difference = compare(finding("softmax", 8, 4.1, 4.12, 4.11), finding("attention", 8, 4.0, 4.02, 4.01))
    assert difference is not None and difference.shown and abs(difference.relative - 0.1 / 4.01) < 1e-9


def test_a_difference_within_the_spread_of_either_is_not_shown() -> None:
    steady, wide = finding("a", 8, 4.0, 4.0, 4.0), finding("b", 8, 3.8, 4.1, 3.95)
    for pair in ((steady, wide), (wide, steady)):
        difference = compare(*pair)
        assert difference is not None and not difference.shown


def test_one_seed_shows_nothing_and_only_common_seeds_count() -> None:
    one = compare(finding("a", 8, 3.0), finding("b", 8, 4.0, 4.0))
    assert one is not None and not one.shown and one.relative == -0.25


def test_tables_compare_routers_at_each_size_and_sizes_of_each_router() -> None:
    rows = [finding("attention", 8, 4.0, 4.1), finding("softmax", 8, 4.05, 4.2), finding("attention", 16, 3.5, 3.6)]
    text = tables(rows)
    assert text.index("router, 8 experts") < text.index("experts, attention router")
    assert "no difference shown" in text and "-12.35%" in text
    assert "router, 16 experts" not in text

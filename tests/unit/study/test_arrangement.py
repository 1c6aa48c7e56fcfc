"""Arrangements of equal size, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from megatron_yuan.config.presets import preset
from megatron_yuan.config.schema import ModelConfig
from megatron_yuan.errors import ConfigError
from megatron_yuan.planning.accounting import count_parameters
from megatron_yuan.study.arrangement import parse_arrangement, parse_cell, plan_cells
from megatron_yuan.study.equality import check_equal_parameters

ABLATION = preset("ablation")


def test_the_papers_shared_baseline_is_two_shared_and_two_of_fourteen_of_half_width() -> None:
    found = parse_arrangement("softmax+2shared").applied_to(ABLATION.model, 8)
    assert (found.num_shared_experts, found.num_experts, found.moe_router_topk) == (2, 14, 2)
    assert found.ffn_hidden_size * 2 == ABLATION.model.ffn_hidden_size


@pytest.mark.parametrize("name", ["softmax+1shared", "attention+2shared", "softmax+6shared"])
@pytest.mark.parametrize("experts", [4, 8, 16])
def test_shared_arrangements_have_as_many_expert_parameters_in_all_and_active(name: str, experts: int) -> None:
    model = ModelConfig(hidden_size=64, ffn_hidden_size=24 * 8, moe_router_topk=2, num_experts=8)
    plain, shared = model, parse_arrangement(name).applied_to(model, experts)

    def expert_parameters(each: ModelConfig) -> tuple[int, int]:
        layer = count_parameters(each).layer
        return layer.expert * layer.num_experts + layer.shared, layer.expert * each.moe_router_topk + layer.shared

    assert expert_parameters(shared) == expert_parameters(replace(plain, num_experts=experts))


@pytest.mark.parametrize(
    ("name", "experts", "ffn", "says"),
    [
        ("softmax+3shared", 8, 64, "does not come out even"),
        ("softmax+1shared", 7, 96, "does not come out even"),
        ("softmax+2shared", 1, 64, "more than there are"),
        ("attention", 1, 64, "more than there are"),
    ],
)
def test_experts_that_do_not_divide_are_refused(name: str, experts: int, ffn: int, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        parse_arrangement(name).applied_to(ModelConfig(ffn_hidden_size=ffn, moe_router_topk=2), experts)


@pytest.mark.parametrize("text", ["softmx", "softmax+shared", "softmax+0shared", "softmax+cake", ""])
def test_unknown_arrangements_are_refused_with_what_there_is(text: str) -> None:
    with pytest.raises(ConfigError, match="routers"):
        parse_arrangement(text)


def test_a_cells_folder_says_which_cell_it_is() -> None:
    for cell in plan_cells([parse_arrangement("softmax+2shared+aux")], [8, 16], 2, ABLATION):
        assert parse_cell(cell.name) == cell


def test_all_cells_of_the_first_seed_come_first() -> None:
    names = [parse_arrangement("attention"), parse_arrangement("softmax")]
    seeds = [cell.seed for cell in plan_cells(names, [8], 3, ABLATION)]
    assert seeds == sorted(seeds) and len(set(seeds)) == 3


def test_routers_of_unlike_size_are_not_compared() -> None:
    small = replace(ABLATION, model=replace(ABLATION.model, hidden_size=64, ffn_hidden_size=8, vocab_size=128))
    cells = plan_cells([parse_arrangement("attention"), parse_arrangement("softmax")], [8], 1, small)
    with pytest.raises(ConfigError, match=r"(?s)attention has .* raise --ffn-hidden-size"):
        check_equal_parameters(cells, small)
    check_equal_parameters(plan_cells([c.arrangement for c in cells], [8], 1, ABLATION), ABLATION)

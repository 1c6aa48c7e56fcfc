from __future__ import annotations

import pytest

from megatron_yuan.errors import ConfigError
from megatron_yuan.parallel.stages import layers_of_chunks


def test_layers_are_shared_out_evenly_by_default() -> None:
    assert layers_of_chunks(6, 3) == [[[0, 1]], [[2, 3]], [[4, 5]]]


def test_a_layout_gives_each_stage_its_own_number_of_layers() -> None:
    assert layers_of_chunks(12, 4, 1, "2,4,4,2") == [[[0, 1]], [[2, 3, 4, 5]], [[6, 7, 8, 9]], [[10, 11]]]


def test_virtual_stages_go_round_the_stages_chunk_by_chunk() -> None:
    assert layers_of_chunks(8, 2, 2) == [[[0, 1], [4, 5]], [[2, 3], [6, 7]]]
    assert layers_of_chunks(7, 2, 2, "1,2,3,1") == [[[0], [3, 4, 5]], [[1, 2], [6]]]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((7, 2, 1, None), "not divisible by 2 pipeline stages"),
        ((10, 4, 1, None), "--pipeline-model-parallel-layout 2,3,3,2"),
        ((2, 4, 1, None), "use fewer stages"),
        ((6, 2, 2, None), "4 model chunks"),
        ((8, 2, 1, "3,4"), "adds up to 7 layers"),
        ((8, 2, 1, "2,4,2"), "has 3 entries"),
        ((8, 2, 1, "8,0"), "at least 1 layer"),
        ((8, 2, 1, "4;4"), "whole numbers"),
    ],
)
def test_a_layout_that_does_not_add_up_is_refused_with_the_fix(arguments: tuple, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        layers_of_chunks(*arguments)

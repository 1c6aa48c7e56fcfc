"""That runs may be compared: as many parameters in each, to a thousandth."""

from __future__ import annotations

from collections.abc import Sequence

from megatron_yuan.config.schema import Config
from megatron_yuan.errors import ConfigError
from megatron_yuan.planning.accounting import count_parameters
from megatron_yuan.study.arrangement import Cell

TOLERANCE = 1e-3


def check_equal_parameters(cells: Sequence[Cell], base: Config) -> None:
    """ConfigError where, at the same number of experts, one has over a thousandth more parameters than another."""
    for experts in {cell.experts for cell in cells}:
        sizes = {
            cell.arrangement.name: count_parameters(cell.config(base).model).total
            for cell in cells
            if cell.experts == experts
        }
        smallest, largest = min(sizes, key=sizes.__getitem__), max(sizes, key=sizes.__getitem__)
        excess = sizes[largest] / sizes[smallest] - 1
        if excess > TOLERANCE:
            raise ConfigError(
                f"at {experts} experts {largest} has {sizes[largest]:,} parameters and {smallest} {sizes[smallest]:,}, "
                f"{excess:.2%} apart; a comparison allows {TOLERANCE:.1%}.\n"
                "Routers weigh less beside larger experts: raise --ffn-hidden-size."
            )

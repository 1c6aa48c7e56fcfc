"""What a run's data are, kept in checkpoints: what differs is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from megatron_yuan.data.packing import take_turns
from megatron_yuan.data.record import Identity, check_same_data, data_record
from megatron_yuan.errors import DataError

SETS = [Identity("zh", 0.6, "a" * 64, "b" * 64), Identity("code", 0.4, "c" * 64, "d" * 64)]
SPLIT = "9,1,0"
SAVED = data_record(SETS, 7, [1], SPLIT)


def test_the_same_data_are_the_same() -> None:
    check_same_data(SAVED, data_record(SETS, 7, [1], SPLIT), "runs/a")


@pytest.mark.parametrize(
    ("now", "says"),
    [
        (data_record(SETS, 8, [1], SPLIT), r"a document ends with 8, but with 7 in the run in runs/a\..*--eod-id 7"),
        (data_record(SETS, 7, [], SPLIT), r"code is not rearranged by FIM, but in the run in runs/a it was \(fim: in"),
        (data_record(SETS, 7, [0, 1], SPLIT), r"zh is rearranged by FIM, but in the run in runs/a it was not"),
        (data_record(SETS[::-1], 7, [1], SPLIT), r"the documents of code .* are not those that the run in runs/a"),
        (data_record(SETS[:1], 7, [], SPLIT), "the blend has 1 sets, but the run in runs/a was trained on 2"),
        (data_record(SETS, 7, [1], "1,0,0"), "trained on by split 1,0,0, but by 9,1,0 in the run in runs/a"),
    ],
)  # fmt: skip
def test_what_differs_is_named(now: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError, match=f"(?s){says}"):
        check_same_data(SAVED, now, "runs/a")


def test_records_of_earlier_versions_tell_less_and_are_taken_at_that() -> None:
    check_same_data({"order": 1, "sets": SAVED["sets"]}, SAVED, "runs/a")


def test_weights_that_mean_another_order_by_rounding_alone_are_other_data(tmp_path: Path) -> None:
    def record(weights: tuple[float, ...]) -> dict[str, Any]:
        sets = [Identity(name, weight, name * 64, name * 64) for name, weight in zip("abc", weights, strict=True)]
        return data_record(sets, 7, [], SPLIT)

    tens, tenths, doubled = (1.0, 2.0, 3.0), (0.1, 0.2, 0.3), (2.0, 4.0, 6.0)
    orders = [take_turns(weights, 2000, tmp_path)["sets"].tolist() for weights in (tens, tenths, doubled)]
    assert orders[0] == orders[2] != orders[1]
    check_same_data(record(tens), record(doubled), "runs/a")
    with pytest.raises(
        DataError, match=r"a has weight 0\.1 of 0\.6, but 1 of 6 in the run in runs/a: the same share but"
    ):
        check_same_data(record(tens), record(tenths), "runs/a")

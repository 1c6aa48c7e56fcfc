"""What a run's data are, kept in checkpoints: what differs is named."""

from __future__ import annotations

from typing import Any

import pytest

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

"""What is left of the data once samples are to be skipped."""

from __future__ import annotations

import pytest

from megatron_yuan.checkpoint.state import RunState
from megatron_yuan.config.fields import with_values
from megatron_yuan.config.schema import Config
from megatron_yuan.errors import ConfigError
from megatron_yuan.training.run_data import check_skipped


def asked(*skipped: str) -> Config:
    return with_values(Config(), {"skip_samples": skipped, "train_iters": 10, "global_batch_size": 8})


@pytest.mark.parametrize(("spans", "position"), [(["0-999"], 0), (["40-79"], 40), (["8-90", "0-7"], 0)])
def test_skipping_all_that_is_to_come_is_refused(spans: list[str], position: int) -> None:
    with pytest.raises(ConfigError, match="leaves none of the samples"):
        check_skipped(asked(*spans), RunState(position // 8, position), 80)


def test_skipping_some_is_told_with_what_follows_from_it() -> None:
    told = check_skipped(asked("10-19"), RunState(0, 0), 80)
    assert told is not None and "leaves 70 samples for the 80 to come" in told


@pytest.mark.parametrize(("spans", "position"), [([], 0), (["0-39"], 40), (["0-79"], 80), (["5"], 0)])
def test_nothing_is_told_where_enough_is_left(spans: list[str], position: int) -> None:
    assert check_skipped(asked(*spans), RunState(position // 8, position), 81) is None

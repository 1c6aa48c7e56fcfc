"""What is left of the data: once samples are to be skipped, and to validate on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from megatron_yuan.checkpoint.state import RunState
from megatron_yuan.config.fields import with_values
from megatron_yuan.config.schema import Config
from megatron_yuan.data.datasets import build_validation_samples, open_sources
from megatron_yuan.errors import ConfigError
from megatron_yuan.training.run_data import check_skipped, not_validated
from tests.indexed_data import EOD, write_indexed


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


def test_sets_too_short_to_validate_on_are_named_in_one_warning(tmp_path: Path) -> None:
    long = [np.array([5] * 30 + [EOD])] * 20
    names = {"zh": long, "short": [*long, np.array([EOD])], "tiny": [*long, np.array([6, EOD])]}
    paths = [write_indexed(tmp_path / name, documents) for name, documents in names.items()]
    config = with_values(
        Config(), {"data_path": tuple(paths), "seq_length": 16, "eod_id": EOD, "split": "20,1,0", "eval_interval": 5}
    )
    sources = open_sources(config.data, 300)
    validation = build_validation_samples(sources, config.data, seed=1)
    told = not_validated(config, sources, validation)
    assert told is not None and told.startswith("no validation loss of short, tiny: ") and "\n" not in told
    assert not_validated(config, replace(sources, valid=sources.valid[:1]), validation) is None
    assert "nothing to validate on" in str(not_validated(config, sources, {}))
    assert not_validated(with_values(config, {"eval_interval": 0}), sources, {}) is None

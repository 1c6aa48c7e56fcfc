"""A run folder goes on with the data it was trained on."""

from __future__ import annotations

from dataclasses import replace

import pytest

from megatron_yuan.config.same_data import check_same_data
from megatron_yuan.config.schema import CheckpointConfig, Config, DataConfig, TrainingConfig
from megatron_yuan.errors import ConfigError

SAVED = Config(data=DataConfig(data_path=("0.5", "data/en", "0.5", "data/zh"), seq_length=64))


def test_data_that_only_moved_are_the_same():
    moved = replace(SAVED, data=replace(SAVED.data, data_path=("0.50", "/new/disk/en", ".5", "/new/disk/zh")))
    check_same_data(SAVED, moved, "runs/first")


@pytest.mark.parametrize(
    ("changed", "setting"),
    [
        (replace(SAVED, data=replace(SAVED.data, data_path=("data/en",))), "data-path"),
        (replace(SAVED, data=replace(SAVED.data, data_path=("0.6", "data/en", "0.4", "data/zh"))), "data-path"),
        (replace(SAVED, data=replace(SAVED.data, seq_length=128)), "seq-length"),
        (replace(SAVED, data=replace(SAVED.data, split="9,1,0")), "split"),
        (replace(SAVED, training=TrainingConfig(seed=5)), "seed"),
    ],
)
def test_other_data_are_refused_unless_asked_for(changed, setting):
    with pytest.raises(ConfigError) as error:
        check_same_data(SAVED, changed, "runs/first")
    assert str(error.value).startswith(f"{setting} is ") and "--other-data" in str(error.value)
    check_same_data(SAVED, replace(changed, checkpoint=CheckpointConfig(other_data=True)), "runs/first")

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
    ("saved", "asked"),
    [
        (("0.7", "a", "0.3", "b"), ("7", "a", "3", "b")),
        (("7", "a", "3", "b"), ("70", "x/a", "30", "x/b", "0", "c")),
        (("a",), ("2", "a")),
        ((), ()),
    ],
)
def test_weights_of_the_same_shares_are_the_same_data(saved: tuple[str, ...], asked: tuple[str, ...]) -> None:
    check_same_data(Config(data=DataConfig(data_path=saved)), Config(data=DataConfig(data_path=asked)), "runs/first")


@pytest.mark.parametrize("asked", [("7", "a", "4", "b"), ("7", "b", "3", "a"), ("a", "b"), ("-1", "a", "1", "b"), ()])
def test_other_shares_are_other_data(asked: tuple[str, ...]) -> None:
    saved = Config(data=DataConfig(data_path=("0.7", "a", "0.3", "b")))
    with pytest.raises(ConfigError, match="data-path is"):
        check_same_data(saved, Config(data=DataConfig(data_path=asked)), "runs/first")


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


@pytest.mark.parametrize(
    ("saved", "asked", "fix"),
    [
        (DataConfig(sft=True), DataConfig(), "Fix: --sft;"),
        (DataConfig(), DataConfig(sft=True), "Fix: leave out --sft;"),
        (DataConfig(data_path=("a",)), DataConfig(train_data_path=("a",)), "Fix: --data-path a;"),
        (DataConfig(train_data_path=("a",)), DataConfig(data_path=("a",)), "Fix: leave out --data-path;"),
    ],
)
def test_the_fix_is_what_the_command_line_takes(saved: DataConfig, asked: DataConfig, fix: str) -> None:
    with pytest.raises(ConfigError) as error:
        check_same_data(replace(SAVED, data=saved), replace(SAVED, data=asked), "runs/first")
    assert fix in str(error.value)


def test_a_blend_may_move_from_flags_to_a_file_as_its_sets_are_compared_by_content():
    check_same_data(SAVED, replace(SAVED, data=DataConfig(data_args_path="blend.yaml", seq_length=64)), "runs/first")

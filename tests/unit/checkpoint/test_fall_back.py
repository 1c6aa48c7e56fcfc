"""A run's own damaged checkpoint is set aside for the one before it; anybody else's is an error."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from megatron_yuan.checkpoint import opened
from megatron_yuan.checkpoint.damage import DamagedError
from megatron_yuan.checkpoint.load import (
    is_checkpoint,
    load_checkpoint,
    open_checkpoint,
    refuse_only_damaged,
    set_aside_damaged,
)
from megatron_yuan.errors import CheckpointError

from .conftest import make_tensors, run_ranks, save_from
from .test_load import assert_equal, blank, flip, rewrite_manifest

NEWEST = Path("checkpoints") / "iter_0000300"


@pytest.fixture
def thrice(tmp_path: Path) -> Path:
    """A run folder with checkpoints of steps 100, 200 and 300, each of other values."""
    for step in (100, 200, 300):
        save_from(tmp_path / "run", 1, 1, step=step, seed=step)
    return tmp_path / "run"


def break_it(path: Path, how: str) -> None:
    file = path / "model" / "layers.0001.safetensors"
    if how == "missing":
        file.unlink()
    elif how == "truncated":
        os.truncate(file, 50)
    elif how == "no manifest":
        (path / "manifest.json").unlink()
    elif how == "manifest cut":
        os.truncate(path / "manifest.json", 100)
    elif how == "run state":
        flip(path / "run_state.json", 10)
    else:
        flip(file if how == "flipped" else path / "optimizer" / "layers.0003.safetensors")


def names_in(run_folder: Path) -> list[str]:
    return sorted(path.name for path in (run_folder / "checkpoints").iterdir())


def resume(run_folder: Path, stages: int, replicas: int) -> list[Any]:
    """As a run does: open with a way back, read, and where damage shows only then, go back and read again."""

    def load(ranks: Any) -> int:
        while True:
            checkpoint = open_checkpoint(run_folder, ranks=ranks, fall_back=True)
            expected = make_tensors(ranks.pp_rank, stages, seed=checkpoint.run_state.step)
            held = blank(expected)
            try:
                load_checkpoint(checkpoint, ranks, held.weights, held.optimizer)
            except DamagedError as damage:
                set_aside_damaged(checkpoint, ranks, damage)
                continue
            assert_equal(held, expected)
            return checkpoint.run_state.step

    return run_ranks(stages, replicas, load)


@pytest.mark.parametrize("layout", [(1, 1), (2, 2)])
@pytest.mark.parametrize(
    "how", ["missing", "truncated", "no manifest", "manifest cut", "run state", "flipped", "flipped optimizer"]
)
def test_every_damage_is_set_aside_on_all_ranks_alike_and_the_checkpoint_before_it_loaded(
    thrice: Path, caplog: pytest.LogCaptureFixture, layout: tuple[int, int], how: str
) -> None:
    break_it(thrice / NEWEST, how)
    assert resume(thrice, *layout) == [200] * (layout[0] * layout[1])
    first, second, third, latest = names_in(thrice)
    assert (first, second, latest) == ("iter_0000100", "iter_0000200", "latest")
    assert third.startswith("iter_0000300.damaged-") and f"Set aside as {third}" in caplog.text
    assert (thrice / "checkpoints" / third / "config.yaml").exists()
    assert resume(thrice, 1, 1) == [200]


def test_two_damaged_ones_in_a_row_are_both_set_aside(thrice: Path) -> None:
    break_it(thrice / NEWEST, "flipped")
    break_it(thrice / NEWEST.with_name("iter_0000200"), "truncated")
    assert resume(thrice, 2, 1) == [100, 100]


def test_with_none_left_a_run_does_not_begin_anew_in_silence(thrice: Path) -> None:
    for step in (100, 200, 300):
        break_it(thrice / "checkpoints" / f"iter_{step:07d}", "flipped")
    for result in resume(thrice, 2, 1):
        assert isinstance(result, CheckpointError) and "no undamaged checkpoint, only iter_0000100.damaged-" in str(
            result
        )
    assert not is_checkpoint(thrice)
    with pytest.raises(CheckpointError, match=r"Restore one of them from a copy, or, to begin anew, delete them"):
        refuse_only_damaged(thrice)


def test_after_setting_aside_a_later_save_goes_on_and_keeps_the_damaged_one(thrice: Path) -> None:
    break_it(thrice / NEWEST, "flipped")
    resume(thrice, 1, 1)
    save_from(thrice, 1, 1, step=300, seed=300)
    assert resume(thrice, 1, 1) == [300]
    assert sum("damaged" in name for name in names_in(thrice)) == 1


def test_without_leave_to_fall_back_nothing_is_renamed(thrice: Path) -> None:
    break_it(thrice / NEWEST, "truncated")
    before = names_in(thrice)
    for options in ({}, {"ckpt_step": 300}):
        with pytest.raises(DamagedError, match=r"layers\.0001\.safetensors is truncated.*--ckpt-step"):
            open_checkpoint(thrice, **options)
    assert names_in(thrice) == before


def test_a_newer_format_is_no_damage_and_nothing_is_taken_back(thrice: Path) -> None:
    rewrite_manifest(thrice / NEWEST / "manifest.json", lambda content: None, version=2)
    before = names_in(thrice)
    assert "upgrade megatron-yuan" in str(resume(thrice, 1, 1)[0])
    assert names_in(thrice) == before


def test_a_version_that_was_flipped_is_damage(thrice: Path) -> None:
    path = thrice / NEWEST / "manifest.json"
    path.write_text(path.read_text().replace('"version": 1', '"version": 3', 1))
    assert resume(thrice, 1, 1) == [200]


def test_damage_that_only_another_rank_sees_is_that_hosts_fault_and_nothing_is_renamed(
    thrice: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise DamagedError("layers.0003.safetensors is damaged")

    monkeypatch.setattr(opened.store, "read_tensors", fail)
    before = names_in(thrice)
    for result in resume(thrice, 2, 1):
        assert isinstance(result, CheckpointError) and "rank 0 reads it undamaged: suspect that rank's host" in str(
            result
        )
    assert names_in(thrice) == before


def test_where_latest_names_one_that_is_gone_the_newest_before_it_is_taken(thrice: Path) -> None:
    (thrice / "checkpoints" / "latest").write_text("iter_0000250\n")
    assert open_checkpoint(thrice).run_state.step == 200


@pytest.mark.parametrize("bit", [1, 4, 64])
def test_a_bit_turned_anywhere_in_a_header_is_damage_and_no_other_error(thrice: Path, bit: int) -> None:
    file = thrice / NEWEST / "model" / "head.safetensors"
    content = bytearray(file.read_bytes())
    found = open_checkpoint(thrice)
    for at in range(8 + int.from_bytes(content[:8], "little")):
        content[at] ^= bit
        file.write_bytes(content)
        with pytest.raises(DamagedError):
            found.read_weights(["final_norm.weight"])
        content[at] ^= bit

"""The benchmark of blends measures what a run does with its data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from megatron_yuan.benchmark import blend
from megatron_yuan.data.blend import Entry, open_source
from megatron_yuan.data.index_file import check_bounds, read_index
from megatron_yuan.mcore.own_builder import build_with_megatron


def test_made_sets_are_sound_pairs_that_take_no_room(tmp_path: Path) -> None:
    blend.write_holes(tmp_path / "a", np.array([3, 1, 70_000], np.int32))
    source = open_source("data_path", Entry(str(tmp_path / "a")))
    check_bounds(source.index, read_index(source.index))
    assert (source.documents, source.tokens) == (3, 70_004)
    assert source.data.stat().st_blocks == 0


def test_a_start_builds_what_it_needs_and_the_next_finds_it(tmp_path: Path) -> None:
    config, tokens = blend._make_sets(44 * 20, tmp_path)
    train, held_out = blend._open(config, tokens)()  # type: ignore[misc]
    assert len(train) == tokens // blend.SEQUENCE_LENGTH and held_out == [{}, {}]
    made = {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").glob("*.npy")}
    assert len(made) > blend.SETS
    blend._open(config, tokens)()
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").glob("*.npy")} == made


def test_megatrons_own_builder_takes_the_same_sets(tmp_path: Path) -> None:
    blend.write_holes(tmp_path / "a", np.full(200, 300, np.int32))
    assert build_with_megatron([str(tmp_path / "a")], [1.0], 14, 4096, 1, tmp_path / "cache") >= 14


def test_a_measurement_is_a_process_of_its_own() -> None:
    measured = blend._apart(_takes_memory)
    assert measured["seconds"] > 0 and measured["gib"] == pytest.approx(0.125, rel=0.2)


def _takes_memory() -> object:
    return lambda: np.ones(2**27, np.uint8)


def test_the_slope_is_a_straight_line_written_out() -> None:
    slope = blend._slope([{"tokens": n * 1e9, "s": 2 + 3 * n} for n in (1, 2, 4)], "s")
    assert slope["at_none"] == pytest.approx(2) and slope["per_trillion"] == pytest.approx(3000)
    assert slope["paper"] == pytest.approx(2 + 3 * 3400)

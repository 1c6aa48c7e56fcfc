from __future__ import annotations

from pathlib import Path

import pytest

from megatron_yuan.benchmark import checkpoints
from megatron_yuan.errors import ConfigError


def test_a_small_state_is_saved_and_loaded_beside_all_that_bounds_it_and_nothing_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = checkpoints.report(200_000, rounds=1, folder=str(tmp_path))
    assert {"save", "load", "cp + fsync", "sha256 alone", "DCP load", "memcpy"} <= result["seconds"].keys()
    assert len(result["ratios"]) == 9 and all(ratio > 0 for ratio in result["ratios"].values())
    assert result["held_bytes"] == pytest.approx(200_000 * checkpoints.BYTES_PER_PARAMETER, rel=0.2)
    assert "torch.distributed.checkpoint" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_a_disk_without_room_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="do not fit on the disk"):
        checkpoints.report(10**13, rounds=1, folder=str(tmp_path))

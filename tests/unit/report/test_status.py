"""What launch scripts read."""

from __future__ import annotations

import json

import pytest

from megatron_yuan.errors import CheckpointError, ConfigError, ParallelError
from megatron_yuan.report.status import state_after, write_status


def test_a_status_replaces_the_former_whole(tmp_path):
    write_status(tmp_path / "status.json", "running", "at work", 3)
    write_status(tmp_path / "status.json", "requeue", "SIGUSR1", 7)
    status = json.loads((tmp_path / "status.json").read_text())
    assert (status["state"], status["reason"], status["step"]) == ("requeue", "SIGUSR1", 7)
    assert [file.name for file in tmp_path.iterdir()] == ["status.json"]


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (ConfigError("a setting"), "failed"),
        (CheckpointError("no space"), "failed"),
        (ParallelError("rank 3 is gone"), "requeue"),
        (RuntimeError("connection closed by peer"), "requeue"),
        (MemoryError(), "requeue"),
    ],
)
def test_what_the_next_start_would_meet_again_is_failed_and_the_rest_requeued(error, state):
    assert state_after(error) == state


def test_on_a_full_disk_the_old_status_makes_room_for_the_new(tmp_path, monkeypatch):
    path = tmp_path / "status.json"
    write_status(path, "running", "at work, with a long reason that the next one does not need", 3)

    def full(*_: object, **__: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(path), "write_text", full)
    write_status(path, "failed", "no disk space", 4)
    assert json.loads(path.read_text())["state"] == "failed"
    write_status(tmp_path / "new.json", "failed", "no disk space", 4)  # nothing to write over: said, not raised

"""What status.json says of sessions that never came to their first step."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import pytest

from megatron_yuan.errors import ConfigError, PeerError
from megatron_yuan.report.lock import FolderLock
from megatron_yuan.report.status import write_status
from megatron_yuan.training.outcome import Outcome


def status(folder: Path) -> tuple[str, str]:
    found = json.loads((folder / "status.json").read_text())
    return found["state"], found["reason"]


@pytest.mark.parametrize("claimed", [False, True])
@pytest.mark.parametrize(("error", "state"), [(ConfigError("lr is -1"), "failed"), (PeerError("gone"), "requeue")])
def test_an_error_before_the_first_step_is_told(tmp_path: Path, claimed: bool, error: Exception, state: str) -> None:
    write_status(tmp_path / "status.json", "requeue", "of the session before", 7)
    with pytest.raises(type(error)), Outcome(str(tmp_path)) as outcome:
        if claimed:
            outcome.claim()
            assert status(tmp_path)[0] == "running"
        raise error
    assert status(tmp_path) == (state, f"{type(error).__name__}: {error}")


def test_a_run_that_is_done_stays_done(tmp_path: Path) -> None:
    write_status(tmp_path / "status.json", "done", "all 7 steps are trained", 7)
    with pytest.raises(ConfigError), Outcome(str(tmp_path)) as outcome:
        outcome.claim()
        raise ConfigError("another model")
    assert status(tmp_path)[0] == "done"


def test_a_folder_where_another_run_is_at_work_is_left_alone(tmp_path: Path) -> None:
    write_status(tmp_path / "status.json", "running", "at work", 7)
    begun, end = multiprocessing.Event(), multiprocessing.Event()
    other = multiprocessing.Process(target=hold, args=(tmp_path, begun, end))
    other.start()
    try:
        assert begun.wait(20)
        with pytest.raises(ConfigError), Outcome(str(tmp_path)):
            raise ConfigError("in use")
    finally:
        end.set()
        other.join()
    assert status(tmp_path) == ("running", "at work")


def hold(folder: Path, begun, end) -> None:
    lock = FolderLock(folder)
    begun.set()
    end.wait(20)
    lock.release()


def test_nothing_is_made_where_there_was_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError), Outcome(str(tmp_path / "run")):
        raise ConfigError("no data")
    assert list(tmp_path.iterdir()) == []

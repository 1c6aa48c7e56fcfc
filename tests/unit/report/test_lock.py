"""Two runs cannot work in one folder, and a crash locks nobody out."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from megatron_yuan.errors import ConfigError
from megatron_yuan.report.lock import FolderLock

HOLD = (
    "import sys, time; from pathlib import Path; from megatron_yuan.report.lock import FolderLock\n"
    "lock = FolderLock(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"
)


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_the_second_is_told_who_holds_the_folder(tmp_path, holder):
    with pytest.raises(ConfigError) as error:
        FolderLock(tmp_path, patience_seconds=0.2)
    assert f"host {os.uname().nodename}, process {holder.pid}" in str(error.value)
    assert "another --save" in str(error.value)


def test_a_killed_holder_lets_go(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    FolderLock(tmp_path).release()


def test_whoever_comes_while_the_holder_is_going_waits_for_it(tmp_path, holder):
    subprocess.Popen([sys.executable, "-c", f"import os, time; time.sleep(0.5); os.kill({holder.pid}, 9)"])
    FolderLock(tmp_path, patience_seconds=20).release()


def test_releasing_lets_the_next_in(tmp_path):
    lock = FolderLock(tmp_path)
    lock.release()
    lock.release()
    program = "import sys; from pathlib import Path; from megatron_yuan.report.lock import FolderLock\n"
    program += "FolderLock(Path(sys.argv[1]), 0.1)"
    assert subprocess.run([sys.executable, "-c", program, str(tmp_path)]).returncode == 0


def test_a_lock_that_cannot_be_opened_is_said_in_words(tmp_path):
    (tmp_path / ".lock").mkdir()
    with pytest.raises(ConfigError, match=r"\.lock cannot be opened \(Is a directory\)"):
        FolderLock(tmp_path)

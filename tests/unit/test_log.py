from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from megatron_yuan import log


@pytest.fixture(autouse=True)
def _fresh():
    log.console.cache_clear()
    yield
    log.console.cache_clear()


def test_rank_0_speaks_on_stdout(capsys):
    log.configure()
    log.logger.info("[bold]%d tokens[/bold]", 5)
    assert capsys.readouterr().out == "[bold]5 tokens[/bold]\n"


def test_other_ranks_are_heard_only_when_they_warn(capsys):
    log.configure(3, 4)
    log.logger.info("hello")
    log.logger.warning("careful")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "[rank 3 of 4] warning: careful\n"


def test_configuring_twice_does_not_say_things_twice(capsys):
    log.configure()
    log.configure()
    log.logger.info("once")
    assert capsys.readouterr().out == "once\n"


def test_long_lines_are_not_broken_on_a_pipe(capsys):
    log.configure()
    log.logger.info("x" * 300)
    assert capsys.readouterr().out == "x" * 300 + "\n"


def test_a_mirror_has_the_words_with_their_time(tmp_path, capsys):
    log.configure()
    with log.mirrored_to(tmp_path / "log.txt"):
        log.logger.warning("careful")
    log.logger.info("later")
    line = (tmp_path / "log.txt").read_text()
    assert line.endswith(" warning: careful\n")
    assert line[:2] == "20"
    assert "later" not in line


def test_a_mirror_begins_with_what_was_said_before_it(tmp_path):
    log.configure()
    log.logger.warning("set aside")
    with log.mirrored_to(tmp_path / "log.txt"):
        log.logger.info("first step")
    with log.mirrored_to(tmp_path / "other.txt"):
        log.logger.info("other")
    assert [line[20:] for line in (tmp_path / "log.txt").read_text().splitlines()] == [
        "warning: set aside",
        "first step",
    ]
    assert "set aside" not in (tmp_path / "other.txt").read_text()


def test_a_full_disk_beneath_the_mirror_is_said_once(capsys):
    log.configure()
    with log.mirrored_to(Path("/dev/full")):
        log.logger.info("first")
        log.logger.info("second")
    captured = capsys.readouterr()
    assert captured.err == ""
    lines = captured.out.splitlines()
    assert lines[0] == "first"
    assert lines[1].startswith("warning: /dev/full cannot be written (")
    assert lines[2:] == ["second"]


def test_logging_needs_no_torch():
    code = "import sys, megatron_yuan.log; print('torch' in sys.modules or 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"

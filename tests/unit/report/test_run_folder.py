from __future__ import annotations

import errno
import json
import os

import pytest

from megatron_yuan.errors import ConfigError
from megatron_yuan.report.environment import describe_environment
from megatron_yuan.report.lock import FolderLock
from megatron_yuan.report.run_folder import open_run_folder


def test_the_folder_is_made_with_config_and_environment(tmp_path):
    folder = open_run_folder(tmp_path / "runs" / "first", "model: {}\n")
    assert folder.config.read_text() == "model: {}\n"
    environment = json.loads(folder.environment.read_text())
    assert {"python", "packages", "cpu", "cores", "gpus", "git", "argv", "variables"} <= set(environment)
    assert environment["packages"]["torch"]
    assert not list(folder.path.glob("*.tmp"))


def test_a_changed_config_keeps_the_former_beside_it(tmp_path):
    for text in ("a: 1\n", "a: 1\n", "a: 2\n", "a: 3\n"):
        folder = open_run_folder(tmp_path, text)
    assert folder.config.read_text() == "a: 3\n"
    kept = sorted(path.name for path in tmp_path.glob("config.*.yaml"))
    assert kept == ["config.1.yaml", "config.2.yaml"]
    assert [(tmp_path / name).read_text() for name in kept] == ["a: 1\n", "a: 2\n"]


def test_a_save_path_that_is_a_file_is_refused_and_kept(tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(ConfigError, match=r"save is .*file, which is a file: name a folder"):
        open_run_folder(file, "")
    assert file.read_text() == "mine"


@pytest.mark.parametrize("below", ["file/run", "taken"])
def test_a_save_path_that_cannot_be_written_is_refused(tmp_path, below):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "taken" / "config.yaml").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"save is .*, which cannot be written \(.+\): name a folder"):
        open_run_folder(tmp_path / below, "")


def test_a_full_disk_is_told_as_such_and_its_folder_can_be_locked(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    FolderLock(tmp_path).release()
    monkeypatch.setattr("pathlib.Path.write_text", full)
    with pytest.raises(
        ConfigError, match=r"\(No space left on device\): free space there, or name a folder on another"
    ):
        open_run_folder(tmp_path, "")


def test_the_environment_holds_what_matters_and_no_secret(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("NCCL_DEBUG", "INFO")
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    monkeypatch.setenv("TORCH_TOKEN", "secret")
    variables = describe_environment()["variables"]
    assert variables["OMP_NUM_THREADS"] == "1"
    assert variables["NCCL_DEBUG"] == "INFO"
    assert "secret" not in variables.values()

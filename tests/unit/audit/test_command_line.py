"""The tool on folders of either kind: exit codes, words."""

from __future__ import annotations

import dataclasses
import json
import runpy
import sys
from pathlib import Path

import pytest

from megatron_yuan.convert.hf import import_hf
from tests.reference import yuan
from tests.reference.published_layout import config_json, published, write_folder
from tests.shared import SHARED, needs_shared
from tests.unit.inference.test_model import SHAPE

TOOL = Path(__file__).resolve().parents[3] / "tools" / "audit_causality.py"


def run_tool(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", [TOOL.name, *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(TOOL), run_name="__main__")
    return int(ended.value.code or 0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shape = dataclasses.replace(SHAPE, layers=1)
    return write_folder(tmp_path / "hf", published(yuan.random_weights(shape), shape), config_json(shape))


def test_folders_of_both_kinds_are_audited(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import_hf(folder, tmp_path / "run")
    for load in (folder, tmp_path / "run"):
        assert run_tool(monkeypatch, "--load", load, "--seq-length", 6) == 0
        said = capsys.readouterr()
        assert "CAUSAL: no leak" in said.out and "6 tokens a row, documents apart, looped experts" in said.err


def test_a_leak_ends_with_exit_code_1(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from megatron_yuan.model import norm

    right = norm.RMSNorm.forward
    monkeypatch.setattr(norm.RMSNorm, "forward", lambda self, x: right(self, x.roll(-1, -2)))
    assert run_tool(monkeypatch, "--load", folder, "--seq-length", 6, "--experts", "grouped") == 1
    assert "LEAK. It starts in layer 0, norm before attention (values)" in capsys.readouterr().out


def test_a_mistake_in_what_is_asked_ends_with_exit_code_2(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, word in (
        (("--load", tmp_path / "nothing"), "is not there"),
        (("--load", folder, "--seq-length", 0), "seq-length is 0"),
        (("--load", folder, "--eod-id", 10**6), "eod-id is 1000000"),
    ):
        assert run_tool(monkeypatch, *arguments) == 2
        said = capsys.readouterr().err
        assert word in said and "Traceback" not in said


@needs_shared
@pytest.mark.parametrize("name", ["yuan_moe_tiny", "yuan_moe_32experts"])
def test_models_of_the_published_code_are_causal(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    golden = SHARED / "golden" / name
    experts = json.loads((golden / "config.json").read_text())["moe_config"]["moe_num_experts"]
    assert run_tool(monkeypatch, "--load", golden, "--seq-length", experts) == 0, capsys.readouterr().out

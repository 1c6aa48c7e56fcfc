"""A run that differs from the unbroken one in any step, weight or moment is told apart from it."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from megatron_yuan.drill.evidence import differences, durable_step, faults_of


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """As a run of three steps leaves it, the last of them saved."""
    folder = tmp_path / "run"
    checkpoint = folder / "checkpoints" / "iter_0000003"
    (checkpoint / "model").mkdir(parents=True)
    (checkpoint / "optimizer").mkdir()
    contents = {"run_state.json": b"{}", "model/a.safetensors": b"weights", "optimizer/a.safetensors": b"moments"}
    files = {}
    for name, content in contents.items():
        (checkpoint / name).write_bytes(content)
        files[name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (checkpoint / "manifest.json").write_text(json.dumps({"content": {"files": files}}))
    (folder / "checkpoints" / "latest").write_text("iter_0000003\n")
    write_steps(folder, [1, 2, 3])
    return folder


def write_steps(folder: Path, steps: list[int], shift: float = 0.0) -> None:
    lines = [json.dumps({"kind": "step", "step": step, "loss": step + shift}, separators=(",", ":")) for step in steps]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")


@pytest.fixture
def other(run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(run, tmp_path / "other")


def test_equal_runs_have_no_differences_though_steps_were_trained_twice(run: Path, other: Path) -> None:
    write_steps(other, [1, 2, 1, 2, 3])
    assert differences(other, run) == []


@pytest.mark.parametrize("name", ["model/a.safetensors", "optimizer/a.safetensors", "run_state.json"])
def test_a_differing_file_is_named(run: Path, other: Path, name: str) -> None:
    (other / "checkpoints" / "iter_0000003" / name).write_bytes(b"others")
    assert differences(other, run) == [f"{name} differs at step 3"]


def test_a_differing_step_and_a_missing_one_are_named(run: Path, other: Path) -> None:
    write_steps(other, [1, 2, 3], shift=1e-15)
    assert [each.partition(":")[0] for each in differences(other, run)] == ["step 1", "step 2", "step 3"]
    write_steps(other, [1, 3])
    assert differences(other, run) == ["steps without a line in metrics.jsonl: [2]"]


def test_steps_trained_on_weights_known_to_be_wrong_count_for_nothing_once_they_are_left_behind(
    run: Path, other: Path
) -> None:
    lines = [("step", 1, 1), ("step", 2, 9), ("start", 1, None), ("step", 2, 2), ("step", 3, 3)]
    text = [json.dumps({"kind": kind, "step": step, "loss": loss}, separators=(",", ":")) for kind, step, loss in lines]
    (other / "metrics.jsonl").write_text("\n".join(text) + "\n")
    assert differences(other, run, poisoned=True) == []
    assert [each.partition(":")[0] for each in differences(other, run)] == ["step 2"]


def test_damage_is_seen_by_the_manifest(run: Path) -> None:
    checkpoint = run / "checkpoints" / "iter_0000003"
    assert faults_of(checkpoint) == []
    (checkpoint / "model" / "a.safetensors").write_bytes(b"Weights")
    (checkpoint / "run_state.json").unlink()
    assert faults_of(checkpoint) == [
        "iter_0000003/run_state.json is missing",
        "iter_0000003/model/a.safetensors is not what was written",
    ]


def test_a_checkpoint_that_was_set_aside_is_not_the_durable_one(run: Path) -> None:
    assert durable_step(run) == 3
    (run / "checkpoints" / "iter_0000003").rename(run / "checkpoints" / "iter_0000003.damaged-12ab")
    assert durable_step(run) == 0

"""The batch script reads how a session ended and requeues, ends or fails. Slurm's commands are played by scripts."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def submit(tmp_path: Path, state: str | None, restarts: int = 0, **environment: str) -> tuple[int, str, str]:
    """Run the script with an srun that leaves `state`; returns exit code, requeued job's number, and what was said."""
    run, commands = tmp_path / "run", tmp_path / "bin"
    run.mkdir()
    (run / "status.json").write_text('{"state": "requeue", "reason": "of the session before"}')
    leave = "" if state is None else f"echo '{json.dumps({'state': state, 'reason': 'x'})}' > {run}/status.json\n"
    commands.mkdir()
    for name, body in {
        "srun": f"{leave}exit 1",
        "scontrol": f'if [[ $1 == show ]]; then echo node0; else echo "$2" > {tmp_path}/requeued; fi',
    }.items():
        (commands / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (commands / name).chmod(0o755)
    slurm = {"SLURM_SUBMIT_DIR": ROOT, "SLURM_JOB_ID": 4711, "SLURM_JOB_NODELIST": "node0", "SLURM_JOB_NUM_NODES": 1}
    settings = {**slurm, "SLURM_RESTART_COUNT": restarts, "SAVE": run, "PATH": f"{commands}:{os.environ['PATH']}"}
    ended = subprocess.run(
        ["bash", ROOT / "examples" / "slurm" / "pretrain.sbatch"],
        env=os.environ | {name: str(value) for name, value in settings.items()} | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    requeued = tmp_path / "requeued"
    return ended.returncode, requeued.read_text().strip() if requeued.exists() else "", ended.stdout + ended.stderr


@pytest.mark.parametrize("state", ["requeue", "running"])
def test_a_session_that_stopped_in_good_order_or_was_killed_is_requeued(tmp_path, state):
    code, requeued, _ = submit(tmp_path, state)
    assert (code, requeued) == (0, "4711")


def test_a_finished_run_is_never_started_again(tmp_path):
    code, requeued, _ = submit(tmp_path, "done")
    assert (code, requeued) == (0, "")


def test_a_failed_run_waits_for_a_human(tmp_path):
    code, requeued, said = submit(tmp_path, "failed", restarts=5)
    assert (code, requeued) == (1, "") and "status.json says why" in said


def test_a_run_that_never_began_is_a_mistake_at_first_and_bad_luck_later(tmp_path):
    (tmp_path / "first").mkdir()
    code, requeued, said = submit(tmp_path / "first", None)
    assert (code, requeued) == (1, "") and "mend the settings" in said
    (tmp_path / "later").mkdir()
    code, requeued, _ = submit(tmp_path / "later", None, restarts=1)
    assert (code, requeued) == (0, "4711")


def test_requeues_come_to_an_end(tmp_path):
    code, requeued, said = submit(tmp_path, "requeue", restarts=3, MAX_REQUEUES="3")
    assert (code, requeued) == (1, "") and "MAX_REQUEUES" in said

"""The batch script reads how a session ended and requeues, ends or fails. Slurm's commands are played by scripts."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
HELP = "--container-image of the pyxis plugin"
ARRAY = {"SLURM_ARRAY_JOB_ID": "4700", "SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_MAX": "3"}


def submit(
    tmp_path: Path,
    state: str | None,
    restarts: int = 0,
    reason: str = "x",
    former: str = "of the session before",
    ends: int = 1,
    nodes: int = 1,
    **environment: str,
) -> tuple[int, str, str]:
    """Run the script with an srun that leaves `state`; returns exit code, requeued job's number, and what was said."""
    run, commands = tmp_path / "run", tmp_path / "bin"
    run.mkdir()
    (run / "status.json").write_text(json.dumps({"state": "requeue", "reason": former}))
    leave = "" if state is None else f"echo '{json.dumps({'state': state, 'reason': reason})}' > {run}/status.json\n"
    commands.mkdir()
    for name, body in {
        "srun": f"[[ $1 != --help ]] || {{ echo '{HELP}'; exit; }}\necho \"$@\" > {tmp_path}/step\n{leave}exit {ends}",
        "scontrol": f"""case "$1 $2" in
            "show hostnames") printf 'node%s\\n' {{0..{nodes - 1}}} ;;
            "show job") echo "JobId=$3 ArrayTaskThrottle=${{THROTTLE:-1}} JobState=${{JOB_STATE:-RUNNING}}" ;;
            requeue*) echo "$2" > {tmp_path}/requeued ;;
            esac""",
        "scancel": f'echo "$@" > {tmp_path}/cancelled',
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


def test_a_long_list_of_nodes_is_no_failure(tmp_path):
    code, _, said = submit(tmp_path, "done", nodes=20_000)
    assert code == 0 and "session ended: done" in said


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


@pytest.mark.parametrize("state", [None, "running"])
def test_a_signal_before_the_first_step_is_told_as_such_and_ends_the_requeues_at_the_second_time(tmp_path, state):
    for restarts, former, ended in ((0, "at work", (1, "")), (1, "at work", (0, "4711")), (2, "starting", (1, ""))):
        folder = tmp_path / str(restarts)
        folder.mkdir()
        code, requeued, said = submit(folder, state, restarts, reason="starting", former=former, ends=138)
        assert (code, requeued) == ended, said
        assert ("USR1 ended the session before its first step" in said) == (code == 1) and "mend" not in said, said


def test_two_sessions_in_a_row_without_a_step_are_the_last(tmp_path):
    code, requeued, said = submit(tmp_path, "running", restarts=2, reason="starting", former="starting")
    assert (code, requeued) == (1, "") and "before their first step" in said


def test_requeues_come_to_an_end(tmp_path):
    code, requeued, said = submit(tmp_path, "requeue", restarts=3, MAX_REQUEUES="3")
    assert (code, requeued) == (1, "") and "MAX_REQUEUES" in said


def test_a_job_that_its_user_cancelled_does_not_come_back(tmp_path):
    code, requeued, said = submit(tmp_path, "requeue", JOB_STATE="COMPLETING")
    assert (code, requeued) == (1, "") and "was cancelled" in said
    (tmp_path / "late").mkdir()
    code, requeued, _ = submit(tmp_path / "late", "requeue", JOB_STATE="COMPLETING Reason=TimeLimit")
    assert (code, requeued) == (0, "4711")


def test_the_next_session_of_an_array_goes_on_and_the_last_one_says_where_it_stands(tmp_path):
    for number, state, code, cancelled, words in (
        (1, "requeue", 0, False, "session ended: requeue"),
        (3, "requeue", 1, False, "last session"),
        (2, "done", 0, True, "session ended: done"),
        (2, "failed", 1, True, "status.json says why"),
        (1, None, 1, True, "mend the settings"),
        (2, None, 0, False, "session ended: none"),
    ):
        folder = tmp_path / f"{number}{state}"
        folder.mkdir()
        ended, requeued, said = submit(folder, state, **ARRAY, SLURM_ARRAY_TASK_ID=str(number))
        assert (ended, requeued) == (code, "") and words in said, said
        assert (folder / "cancelled").exists() == cancelled, (number, state)


def test_an_array_whose_sessions_would_run_at_once_is_refused(tmp_path):
    code, _, said = submit(tmp_path, "done", **ARRAY, SLURM_ARRAY_TASK_ID="1", THROTTLE="0")
    assert code == 1 and "--array=1-20%1" in said and not (tmp_path / "step").exists()


def test_a_container_gets_the_clone_and_the_mounts_or_the_plugin_that_is_missing_is_named(tmp_path, monkeypatch):
    code, _, said = submit(tmp_path, "done", CONTAINER="/images/yuan.sqsh", CONTAINER_MOUNTS="/data:/data")
    step = (tmp_path / "step").read_text()
    assert code == 0, said
    assert f"--container-image=/images/yuan.sqsh --container-workdir={ROOT}" in step
    assert f"--container-mounts={ROOT}:{ROOT},/data:/data" in step
    monkeypatch.setitem(globals(), "HELP", "no such option")
    (tmp_path / "without").mkdir()
    code, _, said = submit(tmp_path / "without", "done", CONTAINER="/images/yuan.sqsh")
    assert code == 1 and "pyxis" in said

"""The batch script on a real Slurm: two ranks, the time limit's signal, a requeue, and the run of who never stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from megatron_yuan.data.preprocess import preprocess
from megatron_yuan.data.tokenizer import Tokenizer
from megatron_yuan.data.train_tokenizer import train_tokenizer
from tests.processes import free_port
from tests.slurm import GPUS, Slurm, slurm, why_not
from tests.unit.data.conftest import make_texts, write_jsonl

ROOT = Path(__file__).parents[2]
REASON = why_not()
FLAGS = """--vocab-size 400 --num-layers 2 --seq-length 32 --split 1,0,0 --train-iters 100000 --lr-warmup-iters 0
    --micro-batch-size 1 --global-batch-size 2 --peak-tflops 1 --save-interval 100000 --save-retain 5
    --attention-dropout 0.1 --hidden-dropout 0.1"""

pytestmark = [pytest.mark.slow, pytest.mark.skipif(REASON is not None, reason=str(REASON))]


@pytest.fixture
def cluster() -> Iterator[Slurm]:
    with tempfile.TemporaryDirectory(prefix="yuan") as short, slurm(Path(short) / "slurm") as made:
        yield made


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, str]:
    """Of the launch scripts, for data made here."""
    corpus = write_jsonl(tmp_path / "text.jsonl", make_texts(2, 300))
    tokenizer = Tokenizer(train_tokenizer([corpus], tmp_path / "tokenizer.model", 400))
    preprocess([corpus], tmp_path / "set", tokenizer, append_eod=True)
    data = {"DATA_PATH": f"{tmp_path}/set_text_document", "TOKENIZER_MODEL": str(tokenizer.path)}
    # Not that of the machine: batch scripts take the environment that is active.
    beside_python = {"VIRTUAL_ENV": sys.prefix, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    return {**data, **beside_python, "PRESET": "tiny", "STAGES": "2", "SAVE": f"{tmp_path}/run", "OMP_NUM_THREADS": "1"}


def submit(cluster: Slurm, settings: dict[str, str], log: Path, *options: str) -> str:
    """The job's number. (A job of its own environment needs Slurm's commands beside Python's.)"""
    path = f"{settings['PATH']}:{cluster.environment['PATH']}"
    job = ["sbatch", "--parsable", "--nodes=1", f"--gpus-per-node={GPUS}", f"--output={log}", *options]
    done = subprocess.run(
        [*job, "examples/slurm/pretrain.sbatch", *FLAGS.split()],
        env=cluster.environment | settings | {"PATH": path},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def wait_for(what: Callable[[], bool], seconds: float, log: Path, cluster: Slurm) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, (log.read_text() if log.exists() else "no log", cluster.told())
        time.sleep(0.1)


def requeued(job: dict[str, str]) -> bool:
    return (job["JobState"], job["Restarts"]) == ("PENDING", "1")


def steps(run: Path) -> int:
    metrics = run / "metrics.jsonl"
    return metrics.read_text().count('"kind":"step"') if metrics.exists() else 0


def status(run: Path) -> dict:
    try:
        return json.loads((run / "status.json").read_text())
    except FileNotFoundError:
        return {"state": "none"}


def checkpoint(run: Path, step: int) -> dict[str, bytes]:
    folder = run / "checkpoints" / f"iter_{step:07d}"
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.safetensors")}
    assert found, f"no checkpoint of step {step}"
    return found


def test_before_its_time_limit_a_job_saves_requeues_itself_and_goes_on_to_the_bit(cluster, settings, tmp_path):
    run, log = tmp_path / "run", tmp_path / "job.txt"
    # Slurm looks every 30 s whether the signal is due, so here it comes between 20 and 50 s after the start.
    job = submit(cluster, settings, log, "--time=1", "--signal=USR1@10")
    wait_for(lambda: requeued(cluster.job(job)), 90, log, cluster)
    stopped = status(run)
    assert (stopped["state"], stopped["reason"]) == ("requeue", "SIGUSR1"), log.read_text()
    assert stopped["step"] == steps(run) > 0
    # Slurm gives the node two minutes to end all that was the job's; here that is seen.
    wait_for(lambda: f"[{job}.0] done with job" in (cluster.folder / "slurmd.log").read_text(), 30, log, cluster)
    # The next signal could come before a slow start is over, so this session gets more time.
    cluster.ask("scontrol", "update", f"JobId={job}", "StartTime=now+3", "TimeLimit=30")
    wait_for(lambda: steps(run) >= stopped["step"] + 20, 60, log, cluster)
    assert f"start: step {stopped['step']} of" in log.read_text(), log.read_text()
    cluster.ask("scancel", job)
    wait_for(lambda: cluster.job(job)["JobState"] == "CANCELLED", 60, log, cluster)
    # The state comes at once; the batch script has its last words after srun's processes have saved and ended.
    wait_for(lambda: "the job was cancelled: it is not requeued" in log.read_text(), 60, log, cluster)
    assert len(list(run.glob(f"logs/{job}-[01]/*/*/attempt_0/[01]/stderr.log"))) == 2 * GPUS
    last = status(run)["step"]

    unbroken = tmp_path / "unbroken"
    torchrun = f"-m torch.distributed.run --nproc-per-node 2 --master-port {free_port()}".split()
    data = ["--data-path", settings["DATA_PATH"], "--tokenizer-model", settings["TOKENIZER_MODEL"]]
    layout = ["--preset", "tiny", "--pipeline-model-parallel-size", "2"]
    command = [
        sys.executable,
        *torchrun,
        "pretrain_yuan_moe.py",
        *layout,
        *data,
        *FLAGS.split(),
        "--save",
        str(unbroken),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(
        [*command, "--exit-interval", str(last)],
        check=True,
        cwd=ROOT,
        env=environment,
        capture_output=True,
        timeout=240,
    )
    assert checkpoint(run, last) == checkpoint(unbroken, last)


def test_an_array_is_one_run_in_sessions_that_follow_each_other(cluster, settings, tmp_path):
    run, logs = tmp_path / "run", tmp_path / "jobs.txt"
    for together in ("1-2", "1-2%10"):
        said = tmp_path / f"{together.replace('%', ' by ')}.txt"  # Slurm fills in what follows a % in a log's name
        submit(cluster, settings, said, f"--array={together}")
        wait_for(lambda: not cluster.ask("squeue", "--noheader"), 60, logs, cluster)
        assert "sbatch --array=1-20%1" in said.read_text()
        assert not run.exists()

    array = submit(cluster, settings, logs, "--array=1-4%1", "--open-mode=append")
    wait_for(lambda: steps(run) >= 10, 60, logs, cluster)
    os.kill(status(run)["pid"], signal.SIGUSR1)
    wait_for(lambda: status(run)["state"] == "requeue", 30, logs, cluster)
    stopped = status(run)["step"]
    wait_for(lambda: steps(run) >= stopped + 10, 60, logs, cluster)
    assert f"start: step {stopped} of" in logs.read_text()
    # What a human has to look at is not tried twice more.
    (tmp_path / "set_text_document.bin").write_bytes(b"")
    os.kill(status(run)["pid"], signal.SIGUSR1)
    wait_for(lambda: not cluster.ask("squeue", "--noheader"), 90, logs, cluster)
    assert cluster.job(f"{array}_4")["JobState"] == "CANCELLED", logs.read_text()

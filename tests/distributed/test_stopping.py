"""A signal to the launcher ends the run in good order; the same command goes on; nobody else gets into its folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from megatron_yuan.config.presets import preset
from megatron_yuan.config.schema import Config
from megatron_yuan.config.validate import validate_world
from tests.indexed_data import EOD, counting_documents, write_indexed
from tests.processes import free_port, run_processes

ENTRY = Path(__file__).parents[2] / "pretrain_yuan_moe.py"
STEPS = 2000
SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"


@pytest.fixture
def flags(tmp_path) -> list[str]:
    prefix = write_indexed(tmp_path / "set", counting_documents(0))
    return f"""--preset tiny --num-layers 2 --seq-length 32 --data-path {prefix} --eod-id {EOD} --split 1,0,0
        --train-iters {STEPS} --lr-warmup-iters 0 --micro-batch-size 1 --global-batch-size 2 --peak-tflops 1
        --save {tmp_path / "run"}""".split()


def torchrun(*flags: str) -> list[str]:
    launcher = f"-m torch.distributed.run --nproc-per-node 2 --master-port {free_port()} --signals-to-handle {SIGNALS}"
    return [sys.executable, *launcher.split(), str(ENTRY), "--pipeline-model-parallel-size", "2", *flags]


@contextmanager
def started(command: list[str], run: Path) -> Iterator[subprocess.Popen]:
    """The running command, once it has trained three steps; killed at the end if it still runs."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        deadline = time.monotonic() + 120
        while steps(run) < 3:
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline, "no step within 120 s"
            time.sleep(0.05)
        yield process
    finally:
        process.kill()
        process.communicate()


def steps(run: Path) -> int:
    metrics = run / "metrics.jsonl"
    return metrics.read_text().count('"kind":"step"') if metrics.exists() else 0


def status(run: Path) -> dict:
    return json.loads((run / "status.json").read_text())


def test_a_signal_to_torchrun_saves_and_the_same_command_finishes_the_run(flags, tmp_path):
    run = tmp_path / "run"
    with started(torchrun(*flags, "--num-workers", "1"), run) as process:
        assert status(run)["state"] == "running"
        process.send_signal(signal.SIGUSR1)
        said, _ = process.communicate(timeout=60)
    stopped = status(run)
    assert (stopped["state"], stopped["reason"]) == ("requeue", "SIGUSR1"), said
    assert (run / "checkpoints" / "latest").read_text().strip() == f"iter_{stopped['step']:07d}"
    assert stopped["step"] == steps(run) < STEPS
    flags[flags.index(str(STEPS))] = last = str(stopped["step"] + 5)
    subprocess.run(torchrun(*flags), check=True, timeout=120, capture_output=True)
    assert (status(run)["state"], status(run)["step"], steps(run)) == ("done", int(last), int(last))


def test_a_second_run_is_kept_out_of_the_folder_and_a_kill_of_the_first_lets_it_in(flags, tmp_path):
    command = [sys.executable, str(ENTRY), *flags]
    with started(command, tmp_path / "run") as process:
        second = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert second.returncode == 2 and f"process {process.pid}" in second.stderr, second.stderr
        assert "Traceback" not in second.stderr
        process.kill()
        process.wait()
    assert status(tmp_path / "run")["state"] == "running"
    subprocess.run([*command, "--exit-duration-in-mins", "0.001"], check=True, timeout=120, capture_output=True)
    ended = status(tmp_path / "run")
    assert (ended["state"], ended["reason"]) == ("requeue", "exit-duration-in-mins")


def asked_in_a_save(config: Config) -> tuple[int, int, str | None]:
    """Train; in the first save the last rank alone gets a SIGTERM. Steps done, saves, and why it stopped."""
    from megatron_yuan.data.datasets import open_sources
    from megatron_yuan.parallel import topology as processes
    from megatron_yuan.training.loop import fit
    from megatron_yuan.training.start import start_run

    config = validate_world(config, processes.world_size())
    topology = processes.start(config)
    try:
        run = start_run(config, topology, open_sources(config.data, config.model.vocab_size))
        save, saves = run.saver.save, []

        def slow_save(*state: Any) -> None:
            saves.append(run.step)
            save(*state)
            if topology.rank == topology.world_size - 1:
                os.kill(os.getpid(), signal.SIGTERM)

        run.saver.save = slow_save  # type: ignore[method-assign]
        fit(run)
        return run.step, len(saves), run.stop_reason
    finally:
        processes.stop()


def test_a_signal_to_one_rank_in_a_save_costs_no_further_step_and_no_second_save(tmp_path):
    prefix = write_indexed(tmp_path / "set", counting_documents(0))
    tiny = preset("tiny")
    config = replace(
        tiny,
        data=replace(tiny.data, data_path=(prefix,), split="1,0,0", seq_length=32, eod_id=EOD),
        parallel=replace(tiny.parallel, pipeline_model_parallel_size=2),
        training=replace(tiny.training, train_iters=9, micro_batch_size=1, global_batch_size=2),
        optimizer=replace(tiny.optimizer, lr_warmup_iters=0),
        checkpoint=replace(tiny.checkpoint, save=str(tmp_path / "run"), save_interval=3),
        logging=replace(tiny.logging, peak_tflops=1.0),
    )
    assert run_processes(asked_in_a_save, 2, config) == [(3, 1, "SIGTERM")] * 2
    assert (status(tmp_path / "run")["state"], status(tmp_path / "run")["step"]) == ("requeue", 3)


def test_a_rank_that_is_slow_to_leave_does_not_make_a_finished_run_a_death(tmp_path):
    """With three ranks, one that left early must not end the watch that the slow one still looks to."""
    prefix = write_indexed(tmp_path / "set", counting_documents(0))
    flags = f"""--preset tiny --num-layers 1 --seq-length 32 --data-path {prefix} --eod-id {EOD} --split 1,0,0
        --train-iters 2 --lr-warmup-iters 0 --micro-batch-size 1 --global-batch-size 3 --peak-tflops 1
        --save {tmp_path / "run"}"""
    launcher = f"-m torch.distributed.run --nproc-per-node 3 --master-port {free_port()}"
    slow = Path(__file__).with_name("slow_release.py")
    done = subprocess.run(
        [sys.executable, *launcher.split(), str(slow), str(ENTRY), *flags.split()],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0 and "is dead" not in done.stdout + done.stderr, done.stdout + done.stderr
    assert status(tmp_path / "run")["state"] == "done"


def test_a_reader_that_goes_away_costs_lines_and_not_the_run(flags, tmp_path):
    """As `| head`, or a `tee` that the same Ctrl-C ends."""
    run = tmp_path / "run"
    alone = [sys.executable, str(ENTRY), *flags, "--exit-interval", "200"]
    process = subprocess.Popen(alone, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        deadline = time.monotonic() + 120
        while steps(run) < 20 and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGHUP)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
    stopped = status(run)
    assert (stopped["state"], stopped["reason"]) == ("requeue", "SIGHUP")
    assert (run / "checkpoints" / f"iter_{stopped['step']:07d}").is_dir()


def test_each_session_with_an_exit_interval_goes_on_to_the_next_multiple(flags, tmp_path):
    run = tmp_path / "run"
    limited = [sys.executable, str(ENTRY), *flags, "--train-iters", "5", "--exit-interval", "2"]
    ends = []
    for _ in range(3):
        subprocess.run(limited, check=True, capture_output=True, timeout=120)
        ends.append((status(run)["step"], status(run)["state"]))
    assert ends == [(2, "requeue"), (4, "requeue"), (5, "done")]

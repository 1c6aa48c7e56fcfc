"""Runs the cells of a study, each in a process and a folder of its own; what is done stays done.

A cell is an ordinary training run: STUDY/cells/NAME is its run folder, and a cell that was broken off goes on from its
last checkpoint, as any run does.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from megatron_yuan.config.fields import as_flag, differences
from megatron_yuan.config.schema import CheckpointConfig, Config
from megatron_yuan.config.yaml_file import from_yaml, to_yaml
from megatron_yuan.errors import ConfigError, YuanError
from megatron_yuan.report.metrics import read_metrics
from megatron_yuan.report.run_folder import RunFolder
from megatron_yuan.study.arrangement import BALANCES, Cell, parse_cell

POLL_SECONDS = 1.0
VARYING = {"save", "seed", "moe_router", "num_experts", "num_shared_experts", "ffn_hidden_size"} | {
    name for settings in BALANCES.values() for name in settings
}
"""In what cells of one study may differ."""


@dataclass(frozen=True)
class CellRun:
    """A cell and where it is."""

    cell: Cell
    config: Config
    folder: RunFolder

    @property
    def asked(self) -> Path:
        """The settings that it was begun with."""
        return self.folder.path.with_name(f"{self.folder.path.name}.yaml")

    @property
    def output(self) -> Path:
        """What its processes print."""
        return self.folder.path.with_name(f"{self.folder.path.name}.out")

    @property
    def is_done(self) -> bool:
        """Whether it was trained and measured to its end."""
        if not self.folder.metrics.is_file():
            return False
        last = self.config.training.train_iters
        return any(record["step"] == last for record in read_metrics(self.folder.metrics).evaluations)

    @property
    def steps_done(self) -> int:
        """Steps trained, from the end of its metrics."""
        if not self.folder.metrics.is_file():
            return 0
        with self.folder.metrics.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 65536))
            lines = file.read().splitlines()
        for line in reversed(lines):
            try:
                return int(json.loads(line)["step"])
            except (ValueError, KeyError, TypeError):
                continue  # half a line
        return 0


def open_cells(cells: Sequence[Cell], base: Config, study: Path) -> list[CellRun]:
    """Where each cell is. ConfigError where the study has cells that differ by more than the router and the seed."""
    runs = []
    for cell in cells:
        folder = RunFolder(study / "cells" / cell.name)
        config = cell.config(base)
        runs.append(CellRun(cell, replace(config, checkpoint=_checkpoints(config, folder)), folder))
    by_name = {run.cell.name: run for run in runs}
    for found in found_cells(study):
        if not found.steps_done:
            continue  # begun and never trained: begun anew, with what is asked now
        ours = by_name.get(found.cell.name)
        free = {"save"} if ours is not None else VARYING
        for name, then, now in differences((ours or runs[0]).config, found.config):
            if name not in free:
                raise ConfigError(
                    f"{as_flag(name)[2:]} is {now}, but cell {found.cell.name} of {study} was begun with {then}; "
                    "cells of other settings do not compare.\nFix: the same settings, or another --output."
                )
    return runs


def found_cells(study: Path) -> list[CellRun]:
    """Every cell in the folder of a study, of this command or an earlier one."""
    runs = []
    for asked in sorted((study / "cells").glob("*.yaml")):
        try:
            cell = parse_cell(asked.stem)
        except ConfigError:
            cell = None  # a file of somebody else's
        if cell is not None:
            config = from_yaml(asked.read_text(), source=str(asked))
            runs.append(CellRun(cell, config, RunFolder(asked.with_suffix(""))))
    return runs


def run_cells(runs: Sequence[CellRun], entry: Path, jobs: int, watch: Callable[[Sequence[CellRun], int], None]) -> None:
    """Run those that are not done, `jobs` at a time, by the training program `entry`.

    `watch(running, waiting)` is called again and again. Raises YuanError where one fails; the others are then ended,
    and go on where they were the next time.
    """
    waiting = [run for run in runs if not run.is_done]
    running: dict[subprocess.Popen[bytes], CellRun] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                run = waiting.pop(0)
                running[_start(run, entry, jobs)] = run
            watch(list(running.values()), len(waiting))
            time.sleep(POLL_SECONDS)
            for process in [process for process in running if process.poll() is not None]:
                run = running.pop(process)
                if process.returncode or not run.is_done:
                    raise YuanError(
                        f"cell {run.cell.name} ended with exit code {process.returncode} and is not done; "
                        f"{run.output} says why:\n{_last_line(run.output)}"
                    )
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait()


def _checkpoints(config: Config, folder: RunFolder) -> CheckpointConfig:
    """One checkpoint, renewed five times a run unless the settings say when: what a broken-off cell goes on from."""
    asked = config.checkpoint
    interval = asked.save_interval or -(-config.training.train_iters // 5)
    return replace(asked, save=str(folder.path), load=None, save_interval=interval, save_retain=1)


def _start(run: CellRun, entry: Path, jobs: int) -> subprocess.Popen[bytes]:
    run.folder.path.parent.mkdir(parents=True, exist_ok=True)
    run.asked.write_text(to_yaml(run.config))
    stages = run.config.parallel.pipeline_model_parallel_size
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(stages)] if stages > 1 else []
    threads = max(1, (os.cpu_count() or 1) // (jobs * stages))
    with run.output.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, *launcher, str(entry), "--config", str(run.asked)],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={"OMP_NUM_THREADS": str(threads), **os.environ},
        )


def _last_line(path: Path) -> str:
    lines = path.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "(nothing)"

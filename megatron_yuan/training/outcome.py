"""How a session ended, kept in the run folder's status.json by the main rank."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megatron_yuan.report.run_folder import RunFolder
from megatron_yuan.report.status import State, state_after, write_status
from megatron_yuan.training.run import Run


@contextmanager
def outcome_recorded(run: Run) -> Iterator[None]:
    """`running` meanwhile; afterwards what became of the run, an error's first line being the reason."""
    _record(run, "running", "at work")
    run.watch.ending.on_end = lambda finding: _record(run, "requeue", finding)
    try:
        yield
    except BaseException as error:
        first = next(iter(str(error).splitlines()), "")
        _record(run, state_after(error), f"{type(error).__name__}: {first}")
        raise
    if run.step >= run.config.training.train_iters:
        _record(run, "done", f"all {run.step} steps are trained")
    else:
        reason = run.stop_reason or "exit-interval"
        _record(run, "requeue", reason)
        run.telemetry.message(f"stopped by {reason} after step {run.step}; the same command goes on from there")


def _record(run: Run, state: State, reason: str) -> None:
    if run.topology.is_main and run.config.checkpoint.save is not None:
        write_status(RunFolder(Path(run.config.checkpoint.save)).status, state, reason, run.step)

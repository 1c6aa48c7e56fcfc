"""How a session stands and ended, kept in the run folder's status.json by the main rank."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from megatron_yuan.errors import ConfigError
from megatron_yuan.report.lock import FolderLock
from megatron_yuan.report.run_folder import RunFolder
from megatron_yuan.report.status import State, state_after, write_status

if TYPE_CHECKING:
    from megatron_yuan.training.run import Run


class Outcome:
    """One session's, as a context manager around all of it, from the first check of its settings on.

    Until there is a step to speak of, a run that is done stays so: whoever comes by mistake shall not undo it.
    """

    def __init__(self, save: str | None, is_main: bool = True) -> None:
        """`save`: the run folder, None where nothing is kept."""
        self._folder = RunFolder(Path(save)) if save is not None and is_main else None
        self._claimed = self._told = False
        self.step = 0

    def claim(self) -> None:
        """The run folder is this session's."""
        self._claimed = True
        self._before_work("running", "starting")

    def record(self, state: State, reason: str) -> None:
        """Replace what status.json says."""
        if self._folder is not None:
            write_status(self._folder.status, state, reason, self.step)

    @contextmanager
    def training(self, run: Run) -> Iterator[None]:
        """`running` meanwhile; afterwards what became of the run, an error's first line being the reason."""
        self.step = run.step
        self.record("running", "at work")
        self._told = True
        run.watch.ending.on_end = lambda finding: self._end(run, state_after(finding), str(finding))
        try:
            yield
        except BaseException as error:
            self._end(run, state_after(error), _words(error))
            raise
        if run.step >= run.config.training.train_iters:
            self._end(run, "done", f"all {run.step} steps are trained")
        else:
            reason = run.stop_reason or "exit-interval"
            self._end(run, "requeue", reason)
            run.telemetry.message(f"stopped by {reason} after step {run.step}; the same command goes on from there")

    def __enter__(self) -> Outcome:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None or self._told or self._folder is None:
            return
        if self._claimed:
            self._before_work(state_after(error), _words(error))
        elif self._folder.path.is_dir():
            with suppress(ConfigError):  # another session is at work there: the status is its own
                lock = FolderLock(self._folder.path, patience_seconds=0)
                self._before_work(state_after(error), _words(error))
                lock.release()

    def _before_work(self, state: State, reason: str) -> None:
        if self._folder is not None and _state(self._folder.status) != "done":
            self.record(state, reason)

    def _end(self, run: Run, state: State, reason: str) -> None:
        self.step = run.step
        self.record(state, reason)


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"


def _state(path: Path) -> str | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))["state"]
    except (OSError, ValueError, KeyError, TypeError):
        return None

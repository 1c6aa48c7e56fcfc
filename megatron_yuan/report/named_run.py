"""Runs to be shown together, each under a name of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_yuan.errors import DataError
from megatron_yuan.report.metrics import Metrics, read_metrics
from megatron_yuan.report.run_folder import RunFolder


@dataclass(frozen=True)
class NamedRun:
    """A run of at least one step."""

    name: str
    metrics: Metrics


def open_runs(folders: Sequence[Path]) -> list[NamedRun]:
    """Read the run folders. Raises DataError for one without metrics, or without a finished step in them."""
    names = short_names(folders)
    runs = [NamedRun(name, read_metrics(RunFolder(path).metrics)) for name, path in zip(names, folders, strict=True)]
    for run, path in zip(runs, folders, strict=True):
        if not run.metrics.steps:
            raise DataError(
                f"{RunFolder(path).metrics} tells of no finished step: there is nothing to draw yet; "
                "wait for the run's first step, or leave the folder out."
            )
    return runs


def short_names(folders: Sequence[Path]) -> list[str]:
    """The ends of the paths, as long as needed to tell them apart; a folder given twice is numbered."""
    paths = [path.resolve() for path in folders]
    longest = max(len(path.parts) for path in paths)
    for length in range(1, longest + 1):
        names = ["/".join(path.parts[-length:]) for path in paths]
        if len(set(names)) == len(set(paths)):
            break
    return [f"{name} ({names[:i].count(name) + 1})" if names.count(name) > 1 else name for i, name in enumerate(names)]

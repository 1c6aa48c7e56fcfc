"""The run folder is this run's alone: locked against others at work, and refused where it is of another run."""

from __future__ import annotations

from pathlib import Path

from megatron_yuan.checkpoint.agreement import together
from megatron_yuan.checkpoint.load import is_checkpoint
from megatron_yuan.config.schema import Config
from megatron_yuan.config.yaml_file import read_yaml
from megatron_yuan.errors import ConfigError
from megatron_yuan.parallel.topology import Topology
from megatron_yuan.report.lock import FolderLock
from megatron_yuan.report.run_folder import RunFolder, make_run_folder


def claim_run_folder(config: Config, topology: Topology) -> FolderLock | None:
    """Make and lock the folder of `--save` on the main rank, before anything in it is read or written; None elsewhere.

    All ranks get the same ConfigError where it cannot be had: not writable, in use, or of another run.
    """
    save = config.checkpoint.save
    if save is None:
        return None

    held: list[FolderLock] = []

    def claim() -> None:
        if topology.is_main:
            folder = make_run_folder(save)
            held.append(FolderLock(folder.path))
            _refuse_another_run(folder, config)

    together(topology, f"opening {save}", claim)
    return held[0] if held else None


def _refuse_another_run(folder: RunFolder, config: Config) -> None:
    """Without a checkpoint, whose model would betray it, a folder with trained steps still tells by its config."""
    if is_checkpoint(folder.path) or not _has_steps(folder.metrics) or not folder.config.exists():
        return
    saved = read_yaml(folder.config)
    if saved.model != config.model:
        raise ConfigError(
            f"save is {folder.path}, which holds the metrics of a run of another model (see its config.yaml).\n"
            "Fix: another --save, or delete that folder."
        )


def _has_steps(metrics: Path) -> bool:
    try:
        with open(metrics, encoding="utf-8", errors="replace") as lines:
            return any(line.startswith('{"kind":"step"') for line in lines)
    except FileNotFoundError:
        return False

"""The run folder (--save): where everything about one run is, under fixed names."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from megatron_yuan.errors import ConfigError


@dataclass(frozen=True)
class RunFolder:
    """Names of the things in a run folder; knowing them creates nothing."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved config of the newest session; config.1.yaml, config.2.yaml ... are those it replaced."""
        return self.path / "config.yaml"

    @property
    def environment(self) -> Path:
        """Versions, machine and command of the newest session."""
        return self.path / "environment.json"

    @property
    def log(self) -> Path:
        """What the console showed, with times."""
        return self.path / "log.txt"

    @property
    def metrics(self) -> Path:
        """One JSON object for each step and validation."""
        return self.path / "metrics.jsonl"

    @property
    def status(self) -> Path:
        """How the newest session stands or ended (see `status.py`)."""
        return self.path / "status.json"

    def diagnosis(self, step: int) -> Path:
        """What was found when bad steps stopped the run at `step`."""
        return self.path / f"diagnosis-{step:07d}.json"

    @property
    def traces(self) -> Path:
        """Folder of traces of single steps."""
        return self.path / "traces"

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def tokenizer(self) -> Path:
        """Copy of the SentencePiece model that made the data."""
        return self.path / "tokenizer.model"

    @property
    def loss_plot(self) -> Path:
        """Picture of training and validation loss."""
        return self.path / "loss.png"

    @property
    def expert_load_plot(self) -> Path:
        """Picture of the experts' load."""
        return self.path / "expert_load.png"

    @property
    def wandb(self) -> Path:
        """Weights & Biases' own folder."""
        return self.path / "wandb"


def make_run_folder(path: str | Path) -> RunFolder:
    """Create `path` where needed and see that it can be written into. Raises ConfigError where that cannot be."""
    folder = RunFolder(Path(path))
    if folder.path.exists() and not folder.path.is_dir():
        raise ConfigError(f"save is {path}, which is a file: name a folder, new or of an earlier run.")
    with _writing_into(path):
        folder.path.mkdir(parents=True, exist_ok=True)
        folder.log.open("a").close()
        folder.metrics.open("a").close()
    return folder


def open_run_folder(path: str | Path, config_yaml: str) -> RunFolder:
    """`make_run_folder`, then write config.yaml and environment.json for a session that begins."""
    folder = make_run_folder(path)
    from megatron_yuan.report.environment import describe_environment  # loads torch

    with _writing_into(path):
        _keep_former(folder.config, config_yaml)
        _write(folder.config, config_yaml)
        _write(folder.environment, json.dumps(describe_environment(), indent=1, ensure_ascii=False) + "\n")
    return folder


@contextmanager
def _writing_into(path: str | Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        fix = "free space there, or name a folder on another disk" if full else "name a folder that you may write to"
        raise ConfigError(f"save is {path}, which cannot be written ({reason}): {fix}.") from None


def _keep_former(path: Path, text: str) -> None:
    """Where `path` holds something else than `text`, keep that under the first free numbered name."""
    if not path.exists() or path.read_text(encoding="utf-8", errors="replace") == text:
        return
    number = 1
    while (kept := path.with_suffix(f".{number}{path.suffix}")).exists():
        number += 1
    path.rename(kept)


def _write(path: Path, text: str) -> None:
    """Replace `path` in one step, so that a crash leaves the old text or the new."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)

"""Which settings and which position in the data a step of a run had: a run may have sessions with different ones."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_yuan.config.schema import Config
from megatron_yuan.config.yaml_file import from_yaml, read_yaml
from megatron_yuan.errors import ConfigError, DataError
from megatron_yuan.report.metrics import Metrics, read_metrics
from megatron_yuan.report.run_folder import RunFolder


@dataclass(frozen=True)
class Session:
    """A session of a run, as far as its samples go."""

    folder: RunFolder
    config: Config
    step: int
    """Steps done before it."""
    samples: int
    """Samples consumed before it."""
    end: int | None
    """Steps done when the next session began; None: it is the newest."""
    metrics: Metrics

    def consumed(self) -> dict[int, int]:
        """Samples consumed after each step that the records tell of; the session's beginning is one."""
        known = {record["step"]: record["samples"] for record in self.metrics.steps if _is_count(record.get("samples"))}
        return known | {self.step: self.samples}

    def record(self, step: int) -> dict[str, Any] | None:
        """What metrics.jsonl says of a step; None where it has not been made, or its line was lost."""
        return next((record for record in reversed(self.metrics.steps) if record["step"] == step), None)


def open_session(folder: Path, step: int | None = None) -> Session:
    """The session of the run in `folder` that made `step`, or would make it; None: the newest one.

    Raises DataError where there is no such run, ConfigError for a step that it does not have.
    """
    run = RunFolder(folder)
    metrics = read_metrics(run.metrics)
    if not metrics.starts:
        raise DataError(f"{run.metrics} tells of no session: name a run folder in which training has begun.")
    if step is not None and step < 1:
        raise ConfigError(f"step is {step}, but the first one is 1.")
    number = max((i for i, s in enumerate(metrics.starts) if step is None or s["step"] < step), default=None)
    if number is None:
        first = metrics.starts[0]["step"]
        raise ConfigError(
            f"step is {step}, but {folder} begins after step {first}: ask the run that it went on from, "
            "or for a later one."
        )
    start = metrics.starts[number]
    config = _config(run, start.get("config_sha256"))
    if step is not None and step > config.training.train_iters:
        raise ConfigError(f"step is {step}, but the run in {folder} has {config.training.train_iters} (--train-iters).")
    end = metrics.starts[number + 1]["step"] if number + 1 < len(metrics.starts) else None
    return Session(run, config, start["step"], _samples(start, metrics, config), end, metrics)


def _config(run: RunFolder, sha256: Any) -> Config:
    """Of the session: the newest config.yaml is there under its name, earlier ones under numbered names."""
    if isinstance(sha256, str):
        for file in sorted(run.path.glob("config*.yaml")):
            data = file.read_bytes()
            if hashlib.sha256(data).hexdigest() == sha256:
                return from_yaml(data.decode(), source=str(file))
        raise DataError(
            f"{run.path} has no config*.yaml of the session that made this step (sha256 {sha256[:12]}...): it was "
            "changed or removed. Fix: put it back."
        )
    return read_yaml(run.config)  # of an earlier version, which did not say


def _samples(start: dict[str, Any], metrics: Metrics, config: Config) -> int:
    if _is_count(start.get("samples")):
        return start["samples"]
    before = [record["samples"] for record in metrics.steps if record["step"] == start["step"] and "samples" in record]
    return int(before[-1]) if before else start["step"] * (config.training.global_batch_size or 1)


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0
